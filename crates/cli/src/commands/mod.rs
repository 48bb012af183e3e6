//! One file per command.

pub mod completions;
pub mod cpu;
pub mod ctl;
pub mod doctor;
pub mod image;
pub mod lvm;
pub mod pool;
pub mod run;
pub mod translate;
