//! Compares random images with QEMU's tools: `qcow2_oracle COUNT [FIRST_SEED]`.

#[path = "../tests/oracle/mod.rs"]
mod oracle;
#[path = "../tests/random/mod.rs"]
mod random;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let count = arguments.next().unwrap_or(100);
    let first = arguments.next().unwrap_or(0);
    let mut failed = 0;
    for seed in first..first + count {
        let folder = tempfile::tempdir().expect("a folder");
        if let Err(error) = oracle::run(seed, folder.path()) {
            failed += 1;
            println!("{error}\n");
        }
    }
    println!("{count} cases from seed {first}: {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
