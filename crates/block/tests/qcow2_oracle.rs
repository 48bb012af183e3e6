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

/// An L1 table has more clusters than one block of refcounts counts, and so has its copy for a snapshot.
#[test]
fn runs_longer_than_a_block_of_refcounts() {
    let found = std::process::Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("not compared: qemu-img is not installed");
    }
    for (cluster, size) in [(512, 32 << 30), (1024, 20 << 30), (4096, 3 << 40)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let options = [("cluster_size".to_owned(), cluster.to_string())].into();
        let new = block::CreateOptions { size, options, ..block::CreateOptions::default() };
        block::create(&path, "qcow2", new).unwrap();
        let image = block::open(&path, "qcow2", &block::OpenOptions::default()).unwrap();
        image.write_bytes(size - 512, &[1; 512]).unwrap();
        let snapshots = image.snapshots().unwrap();
        for value in 2..5 {
            snapshots.create("s").unwrap();
            image.write_bytes(size - 512, &[value; 512]).unwrap();
            snapshots.delete("s").unwrap();
        }
        snapshots.create("s").unwrap();
        drop(image);
        let check = std::process::Command::new("qemu-img").arg("check").arg(&path).output();
        if let Ok(output) = check {
            assert!(output.status.success(), "{cluster}: {}", String::from_utf8_lossy(&output.stderr));
        }
        // The place of a table that was given up is used again.
        let bytes = std::fs::metadata(&path).unwrap().len();
        let table = size / (cluster * cluster / 8) * 8;
        assert!(bytes < 5 * table + (16 << 20), "{cluster}: {bytes}");
    }
}
