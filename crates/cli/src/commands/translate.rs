//! `vireo translate`.

use anyhow::Result;
use clap::Args;
use engine::cpu_model::CpuModel;
use machine::{LARGEST_TRANSLATION_FILE, translate_ahead};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct TranslateArgs {
    /// Kernels (bzImage, vmlinux) and programs (64-bit ELF) whose code is to be translated
    #[arg(value_name = "IMAGE", required_unless_present = "profiles")]
    images: Vec<PathBuf>,
    /// Translate what earlier runs have: a file of a translation store, also one of another version; may be repeated
    #[arg(long = "profile", value_name = "FILE")]
    profiles: Vec<PathBuf>,
    /// Where translations go; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    translation_store: PathBuf,
    /// CPU model of the machines that will use them
    #[arg(long, value_name = "MODEL", default_value = "max")]
    cpu: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &TranslateArgs) -> Result<u8> {
    let model = CpuModel::named(&arguments.cpu)?;
    let TranslateArgs { images, profiles, translation_store: store, .. } = arguments;
    let done = translate_ahead(images, profiles, store, &model)?;
    if arguments.json {
        let done = serde_json::json!({
            "blocks": done.starts,
            "translated": done.translated,
            "known": done.known,
            "left_out": done.left_out,
            "stored": done.stored,
            "stored_bytes": done.stored_bytes,
        });
        println!("{done}");
        return Ok(0);
    }
    println!("{} blocks: {} translated, {} known before", done.starts, done.translated, done.known);
    println!("The store has {} blocks in {} bytes", done.stored, done.stored_bytes);
    if done.left_out > 0 {
        let room = LARGEST_TRANSLATION_FILE >> 20;
        println!("{} blocks had no room: a store keeps {room} MiB for each program and model", done.left_out);
    }
    Ok(0)
}
