//! What can execute cases.

use crate::case::{Case, Outcome};
use crate::guest::Guest;
use anyhow::Result;

/// What is compared with silicon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Candidate {
    /// The software CPU's interpreter.
    Interpreter,
    /// The software CPU's translator.
    Translator,
}

impl Candidate {
    /// One of it, with every feature that it offers on this host.
    pub fn executor(self) -> Result<Box<dyn Executor>> {
        Ok(Box::new(match self {
            Candidate::Interpreter => Guest::interpreter()?,
            Candidate::Translator => Guest::translator()?,
        }))
    }
}

/// Something that executes cases: silicon, the interpreter, any other engine.
pub trait Executor {
    /// What it is called in reports.
    fn name(&self) -> &'static str;

    /// Executes a batch; outcomes are in the order of the cases. A case that cannot be executed to an end (it left
    /// the harness, or hung) has an error of its own; an error of the whole means that the executor is broken.
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome>>>;
}
