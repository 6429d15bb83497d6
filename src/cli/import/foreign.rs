//! Files that are no events as we read them, by their first bytes, and what to do with each.

const PIPE: &str = "| traqq import -";

/// What something is, and the command that makes NDJSON or CSV of it, if one does.
struct Kind {
    magic: &'static [u8],
    name: &'static str,
    command: &'static str,
}

impl Kind {
    /// The header of a CSV may begin so as well.
    fn is_word(&self) -> bool {
        self.magic.iter().all(u8::is_ascii_alphanumeric)
    }
}

fn is_binary(start: &[u8]) -> bool {
    start.iter().any(|byte| matches!(byte, 0..=8 | 14..=31))
}

const fn kind(magic: &'static [u8], name: &'static str, command: &'static str) -> Kind {
    Kind { magic, name, command }
}

const KINDS: [Kind; 20] = [
    kind(b"BZh", "bzip2", "bzip2 -dc FILE"),
    kind(b"\xfd7zXZ\0", "xz", "xz -dc FILE"),
    kind(b"\x5d\0\0", "LZMA", "xz --format=lzma -dc FILE"),
    kind(b"LZIP", "lzip", "lzip -dc FILE"),
    kind(b"\x04\x22\x4d\x18", "LZ4", "lz4 -dc FILE"),
    kind(b"\xff\x06\0\0sNaPpY", "Snappy", "snzip -dc FILE"),
    kind(b"\x1f\x9d", "compressed with compress(1)", "gzip -dc FILE"),
    kind(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so FILE"),
    kind(b"Rar!\x1a\x07", "a RAR archive", "unrar p -inul FILE"),
    kind(b"PAR1", "Parquet", "duckdb -c \"COPY (FROM 'FILE') TO '/dev/stdout' (FORMAT json)\""),
    kind(b"Obj\x01", "Avro", "avro-tools tojson FILE"),
    kind(b"ORC", "ORC", "orc-contents FILE"),
    kind(b"ARROW1", "Arrow", ""),
    kind(b"SQLite format 3\0", "an SQLite database", "sqlite3 -json FILE 'SELECT * FROM events' | jq -c '.[]'"),
    kind(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", WORKBOOK, ""),
    kind(b"\xff\xfe\0\0", "UTF-32", "iconv -f UTF-32 -t UTF-8 FILE"),
    kind(b"\0\0\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8 FILE"),
    kind(b"%PDF-", "a PDF", ""),
    kind(b"<?xml", "XML", ""),
    kind(b"<!DOCTYPE", "HTML", ""),
];
const WORKBOOK: &str = "an Excel workbook; save the sheet as CSV UTF-8";

/// `None` if it may be events.
pub fn recognise(start: &[u8]) -> Option<String> {
    let (name, command) = if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        zip(start)
    } else if start.get(257..262) == Some(b"ustar") {
        ("a tar archive", "tar -xOf FILE")
    } else {
        let kind = KINDS.iter().find(|kind| start.starts_with(kind.magic) && (!kind.is_word() || is_binary(start)))?;
        (kind.name, kind.command)
    };
    Some(if command.is_empty() {
        format!("it is {name}, and events are NDJSON or CSV")
    } else {
        format!("it is {name}; `{command} {PIPE}` imports what is in it")
    })
}

/// An archive, or one of the documents that are one; the first file in it tells.
fn zip(start: &[u8]) -> (&'static str, &'static str) {
    let holds = |part: &[u8]| memchr::memmem::find(start, part).is_some();
    if holds(b"[Content_Types].xml") || holds(b"_rels/") || holds(b"docProps/") || holds(b"xl/") {
        (WORKBOOK, "")
    } else if holds(b"mimetypeapplication/vnd.oasis") {
        ("an OpenDocument spreadsheet; save the sheet as CSV in UTF-8", "")
    } else {
        ("a zip archive", "unzip -p FILE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_events_is_called_by_its_name() {
        let tar = [&[b'a'; 257][..], b"ustar\0"].concat();
        for (start, part) in [
            (&b"BZh91AY&SY\x04"[..], "bzip2 -dc FILE | traqq import -"),
            (b"\xfd7zXZ\0\0\x04", "xz -dc FILE | traqq import -"),
            (b"PK\x03\x04\x14\0\0\0\x08\0events.csv", "unzip -p FILE"),
            (b"PK\x03\x04\x14\0\x06\0\x08\0[Content_Types].xml", "Excel"),
            (b"PK\x03\x04mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "OpenDocument"),
            (b"PAR1\x15\x04", "Parquet"),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "Excel"),
            (b"\xff\xfe\0\0a\0\0\0", "UTF-32"),
            (&tar, "tar -xOf FILE"),
        ] {
            assert!(recognise(start).is_some_and(|what| what.contains(part)), "{}", start.escape_ascii());
        }
        for start in
            [&b""[..], b"{\"event\":\"PK\"}", b"event,geo\n", b"\xff\xfee\0", b"\xef\xbb\xbfevent", b"ORCHID,PAR1\n"]
        {
            assert_eq!(recognise(start), None, "{}", start.escape_ascii());
        }
    }
}
