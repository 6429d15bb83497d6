//! Everything that needs more than one folder, in one binary.

mod architecture;
mod certificates;
mod cli;
mod client;
mod deploy;
mod environment;
mod hll;
mod kafka;
mod kafka_faults;
mod local;
mod model;
mod nats;
mod nats_access;
mod process;
mod protocol;
mod proxy;
mod readme;
mod redis_aof;
mod redis_ha;
mod redis_store;
mod redis_worker;
mod scene;
mod servers;
mod simulation;
mod tls;
