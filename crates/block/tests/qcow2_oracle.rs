//! A share of the generated comparisons with QEMU's tools; thousands are run by
//! `cargo run --release -p block --example qcow2_oracle -- 1000`.

mod oracle;
mod random;

fn cases(seeds: std::ops::Range<u64>) {
    let works = |tool: &str| std::process::Command::new(tool).arg("--version").output().is_ok();
    if !works("qemu-img") || !works("qemu-io") {
        eprintln!("skipped: qemu-img and qemu-io are not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for seed in seeds {
        if let Err(error) = oracle::run(seed, folder.path()) {
            panic!("{error}");
        }
    }
}

#[test]
fn images_go_back_and_forth_between_both_programs_first_share() {
    cases(0..15);
}

#[test]
fn images_go_back_and_forth_between_both_programs_second_share() {
    cases(15..30);
}
