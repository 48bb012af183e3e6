//! Pools: random histories against a plain copy of the content, power losses, members that fail and return.
//! `VIREO_POOL_CASES=10000 cargo nextest run -p block --test pools` tries more than the usual few, `VIREO_POOL_SEED=7`
//! begins with another one. Forged metadata: `hostile_pool.rs` beside this folder.

mod checksums;
mod clone_histories;
mod clones;
mod files;
mod history;
mod members;
#[path = "../power_loss/model.rs"]
mod model;
mod power_loss;
#[path = "../random/mod.rs"]
mod random;
#[path = "../power_loss/recorder.rs"]
mod recorder;
mod setup;
