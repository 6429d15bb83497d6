//! `traqq store`: a store's counts, moved to another store, or removed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;

use super::chart::counted;
use super::import::unpacked;
use super::output::Stdout;
use super::terminal::Terminal;
use super::{Failure, Outcome, block_on};
use crate::app;
use crate::config::{BrokerKind, Config, StoreKind};
use traqq_counts::store::dump::{Moved, export, import};
use traqq_counts::store::{StoreError, removal};
use traqq_disk::private;

/// Of the compressed file.
const LEVEL: i32 = 3;
/// How long positions are watched, at least, before a store is removed.
const WATCH: Duration = Duration::from_secs(2);

#[derive(Subcommand)]
pub enum Store {
    /// Write counts and positions to a file (zstd). Stop the workers first: it fails if they count
    /// meanwhile
    Export {
        /// The file to be written; it must not exist. - is standard output
        file: PathBuf,
    },
    /// Fill an empty store from such a file. Workers go on where the other store stood
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
    /// Remove all counts and positions of the store: every key of store.redis.prefix, in all lanes,
    /// or all that the embedded store has. Stop the workers first: it fails if they count meanwhile
    Drop {
        /// Do it; without this it only says what would be removed
        #[arg(long)]
        yes: bool,
    },
}

impl Store {
    pub fn run(self, config: &Config) -> Outcome {
        match self {
            Self::Export { file } if is_standard(&file) => {
                if Terminal::stdout().is_terminal {
                    let text = "an export is compressed, and no terminal shows it; name a file, or pipe it on";
                    return Err(Failure::Usage(text.to_owned()));
                }
                let (_, moved) = write(config, Stdout, "standard output")?;
                // Nothing else belongs among the bytes of the export.
                complain!("{} exported", in_words(moved));
            }
            Self::Export { file } => {
                let place = file.display().to_string();
                let named = |error: io::Error| Failure::Failed(format!("{place}: {error}"));
                let out = private::create_new(&file).map_err(named)?;
                let written = write(config, out, &place);
                let written = written.and_then(|(out, moved)| {
                    out.sync_all().and_then(|()| private::sync_directory_of(&file)).map(|()| moved).map_err(named)
                });
                // Half a file would only be taken for a whole one.
                let moved = written.inspect_err(|_| _ = std::fs::remove_file(&file))?;
                say!("{} exported to {place}", in_words(moved));
            }
            Self::Import { file } => {
                let store = app::open_store(config)?;
                let is_standard = is_standard(&file);
                let place = if is_standard { "standard input".to_owned() } else { file.display().to_string() };
                let named = |error: io::Error| Failure::Failed(format!("{place}: {error}"));
                let input: Box<dyn Read + Send> =
                    if is_standard { Box::new(io::stdin()) } else { Box::new(File::open(&file).map_err(named)?) };
                let input: Box<dyn BufRead + Send> = Box::new(BufReader::new(unpacked(input).map_err(named)?));
                let moved = block_on(import(store.as_ref(), input))?;
                let moved = moved.map_err(|error| Failure::Failed(error.to_string()))?;
                say!("{} imported; workers go on from the positions in it", in_words(moved));
            }
            Self::Drop { yes } => drop_store(config, yes)?,
        }
        Ok(())
    }
}

/// Removes the store, or says what would be removed.
fn drop_store(config: &Config, is_meant: bool) -> Outcome {
    let store = app::store(config)?;
    let failed = |error: StoreError| Failure::Failed(error.to_string());
    let place = config.store_place();
    let Some(keys) = block_on(removal::size(store.as_ref()))?.map_err(failed)? else {
        say!("{place} is empty; there is nothing to remove");
        return Ok(());
    };
    let keys = counted(keys, "key");
    if !is_meant {
        say!("{place}: {keys}, and where counting stands, would be removed for good");
        return Err(Failure::Usage("nothing was removed; stop the workers, and say --yes to remove it".to_owned()));
    }
    let meta = block_on(store.meta())?.map_err(failed)?;
    if let Some(why) = meta.and_then(|meta| app::idle_worker(config, &meta.group)) {
        return Err(Failure::Failed(why));
    }
    // A worker commits at least as often as this while there is something to count.
    let watch = WATCH.max(Duration::from_millis(2 * config.worker.batch_age_ms));
    let removed = block_on(removal::remove(store.as_ref(), watch))?.map_err(failed)?;
    say!("{place}: {} removed", counted(removed, "key"));
    if config.store_kind() == StoreKind::Embedded && config.broker.kind() == BrokerKind::Local {
        say!("its log is kept, and the next `traqq run` counts it again; to remove both, delete the directory");
    }
    Ok(())
}

fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Writes the whole store, compressed, to a place with a name.
fn write<W: Write + Send>(config: &Config, out: W, place: &str) -> Result<(W, Moved), Failure> {
    let named = |error: io::Error| Failure::Failed(format!("{place}: {error}"));
    let store = app::store(config)?;
    let mut out = zstd::stream::write::Encoder::new(BufWriter::new(out), LEVEL).map_err(named)?;
    let moved = block_on(export(store.as_ref(), &mut out))?.map_err(|error| Failure::Failed(error.to_string()))?;
    let out = out.finish().and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error));
    Ok((out.map_err(named)?, moved))
}

fn in_words(Moved { keys, values }: Moved) -> String {
    format!("{keys} keys with {values} values")
}
