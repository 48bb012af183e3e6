//! Disk formats against `qemu-img` and `qemu-io`: both tools read and write the same images in turns, and each must
//! read what the other wrote; and against simulated power losses.
//!
//! `VIREO_FORMAT_CASES=1000 cargo nextest run -p block --test formats` tries more than the usual few cases a format,
//! `VIREO_FORMAT_SEED=7` begins with another one.

mod cases;
mod hostile;
mod luks;
mod power_loss;
#[path = "../random/mod.rs"]
mod random;
mod turns;
