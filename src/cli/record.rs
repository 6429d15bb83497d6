//! `traqq record`: one event.

use std::io::Read;

use clap::Args;
use hyper::body::Bytes;

use super::client::{ClientError, ServerArgument};
use super::events::{Encoding, PostError, judge, post};
use super::{Failure, Outcome, block_on};
use crate::config::Config;

#[derive(Args)]
pub struct Record {
    /// The event, for example '{"event":"purchase","geo":"US"}'; - is standard input
    #[arg(value_name = "JSON")]
    event: String,

    #[command(flatten)]
    server: ServerArgument,
}

impl Record {
    pub fn run(self, config: &Config) -> Outcome {
        let mut event = self.event.into_bytes();
        if event == b"-" {
            event.clear();
            let read = std::io::stdin().read_to_end(&mut event);
            read.map_err(|error| Failure::Failed(format!("standard input: {error}")))?;
        }
        if event.trim_ascii().first() != Some(&b'{') {
            let text = "an event is a JSON object like {\"event\":\"purchase\"}; `traqq import` sends many";
            return Err(Failure::Usage(text.to_owned()));
        }
        let mut client = self.server.client(&config.server)?;
        let reply = block_on(post(&mut client, Encoding::Json, Bytes::from(event), None))?.map_err(|error| {
            let doubt = matches!(error, ClientError::Lost(_));
            let end = if doubt { "; whether the event was counted is not known" } else { "" };
            Failure::Failed(format!("{error}{end}"))
        })?;
        match judge(&reply) {
            Ok(taken) if taken.rejected == 0 => {
                say!("accepted {}", super::chart::counted(taken.accepted, "event"));
                Ok(())
            }
            Ok(taken) => {
                let why = taken.errors.first().map_or_else(|| reply.problem(), super::events::Rejection::text);
                Err(Failure::Failed(format!("rejected: {why}")))
            }
            Err(PostError::Stop(why)) => Err(why.into()),
            Err(PostError::Again { why, .. }) => Err(Failure::Failed(why)),
        }
    }
}
