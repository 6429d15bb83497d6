//! `traqq store`: a store's counts, moved to another store.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;

use clap::Subcommand;

use super::import::unpacked;
use super::{Failure, Outcome, block_on};
use crate::app;
use crate::config::Config;
use crate::store::dump::{Moved, export, import};

/// Of the compressed file.
const LEVEL: i32 = 3;

#[derive(Subcommand)]
pub enum Store {
    /// Write counts and positions to a file (zstd). Stop the workers first: it fails if they count meanwhile
    Export {
        /// The file to be written; it must not exist
        file: PathBuf,
    },
    /// Fill an empty store from such a file. Workers go on where the other store stood
    Import { file: PathBuf },
}

impl Store {
    pub fn run(self, config: &Config) -> Outcome {
        let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
        match self {
            Self::Export { file } => {
                let store = app::store(config)?;
                let named = |error: std::io::Error| Failure::Failed(format!("{}: {error}", file.display()));
                let out = File::create_new(&file).map_err(named)?;
                let mut out = zstd::stream::write::Encoder::new(BufWriter::new(out), LEVEL).map_err(named)?;
                let moved = block_on(export(store.as_ref(), &mut out))?.map_err(|error| {
                    // Half a file would only be taken for a whole one.
                    let _ = std::fs::remove_file(&file);
                    failed(&error)
                })?;
                let mut out = out.finish().map_err(named)?;
                out.flush().map_err(named)?;
                out.get_ref().sync_all().map_err(named)?;
                say(moved, &format!("exported to {}", file.display()));
            }
            Self::Import { file } => {
                let store = app::open_store(config)?;
                let named = |error: std::io::Error| Failure::Failed(format!("{}: {error}", file.display()));
                let input = unpacked(File::open(&file).map_err(named)?).map_err(named)?;
                let input = BufReader::new(input);
                let moved = block_on(import(store.as_ref(), input))?.map_err(|error| failed(&error))?;
                say(moved, "imported; workers go on from the positions in it");
            }
        }
        Ok(())
    }
}

fn say(Moved { keys, values }: Moved, what: &str) {
    say!("{keys} keys with {values} values {what}");
}
