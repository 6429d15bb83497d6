//! Everything that needs more than one folder, in one binary.

mod architecture;
mod certificates;
mod cli;
mod client;
mod deploy;
mod hll;
mod kafka;
mod local;
mod model;
mod nats;
mod nats_access;
mod process;
mod proxy;
mod readme;
mod redis_aof;
mod redis_ha;
mod redis_store;
mod redis_worker;
mod servers;
mod simulation;
