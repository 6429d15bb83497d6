use clap::Args;
#[derive(Args)] pub struct Query {}
impl Query { pub fn run(self, _: &crate::config::Config) -> super::Outcome { Ok(()) } }
