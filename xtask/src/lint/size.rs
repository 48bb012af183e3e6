//! A file past 600 lines or a function past 80 is a sign that two things live in one room.
//!
//! A function is measured from its signature's first line to its closing brace, doc comments and attributes
//! left out. Closures count as part of the function they stand in.

use std::path::Path;

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::allow::AllowList;
use crate::workspace;

/// Most lines a Rust file may have.
const FILE_LINES: usize = 600;
/// Most lines a function may have.
const FUNCTION_LINES: usize = 80;

/// Files and functions that are too long.
pub fn check(allowed: &mut AllowList) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in super::wording::rust_files()? {
        let text = std::fs::read_to_string(&file)?;
        let name = workspace::relative(&file);
        let lines = text.lines().count();
        if lines > FILE_LINES && !allowed.excuses("file-size", &name) {
            findings.push(format!("{name}: {lines} lines, more than {FILE_LINES}"));
        }
        for function in long_functions(&text, &file)? {
            if !allowed.excuses("function-size", &format!("{name}::{}", function.name)) {
                findings.push(format!(
                    "{name}:{}: function {} has {} lines, more than {FUNCTION_LINES}",
                    function.line, function.name, function.lines
                ));
            }
        }
    }
    Ok(findings)
}

/// A function that is too long.
struct LongFunction {
    name: String,
    line: usize,
    lines: usize,
}

/// The functions of one file that are too long.
fn long_functions(text: &str, file: &Path) -> Result<Vec<LongFunction>> {
    let tree = syn::parse_file(text).with_context(|| format!("Cannot parse {}", file.display()))?;
    let mut finder = Finder { found: Vec::new() };
    finder.visit_file(&tree);
    Ok(finder.found)
}

/// Walks a file and collects long functions.
struct Finder {
    found: Vec<LongFunction>,
}

impl Finder {
    fn measure(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.span().start().line;
        let lines = block.span().end().line + 1 - line;
        if lines > FUNCTION_LINES {
            self.found.push(LongFunction { name: signature.ident.to_string(), line, lines });
        }
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.measure(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.measure(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.measure(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::long_functions;

    #[test]
    fn only_long_functions_are_found() {
        let long = format!("fn long() {{\n{}}}\nfn short() {{}}\n", "    let _ = 1;\n".repeat(79));
        let found = long_functions(&long, Path::new("a.rs")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].line, found[0].lines), ("long", 1, 81));
        let fits = format!("impl A {{ fn fits() {{\n{}}} }}\n", "    let _ = 1;\n".repeat(78));
        assert!(long_functions(&fits, Path::new("a.rs")).unwrap().is_empty());
    }
}
