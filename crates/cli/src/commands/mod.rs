//! One file per command.

pub mod cpu;
pub mod doctor;
pub mod run;
