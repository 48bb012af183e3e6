//! What can execute cases.

use crate::case::{Case, Outcome};
use anyhow::Result;

/// Something that executes cases: silicon, the interpreter, any other engine.
pub trait Executor {
    /// What it is called in reports.
    fn name(&self) -> &'static str;

    /// Executes a batch; outcomes are in the order of the cases. A case that cannot be executed to an end (it left
    /// the harness, or hung) has an error of its own; an error of the whole means that the executor is broken.
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome>>>;
}
