use clap::Args;
#[derive(Args)] pub struct Find {}
impl Find { pub fn run(self, _: &crate::config::Config) -> super::Outcome { Ok(()) } }
