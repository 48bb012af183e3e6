//! `vireo image` beside `qemu-img`.

#[path = "../../http_disk/tests/server/mod.rs"]
mod server;

use std::path::Path;
use std::process::{Command, Output};

fn run(program: &str, folder: &Path, line: &str) -> Output {
    Command::new(program).args(line.split_whitespace()).current_dir(folder).output().unwrap()
}

/// Runs our program; it has to succeed.
fn ours(folder: &Path, line: &str) -> String {
    let output = run(env!("CARGO_BIN_EXE_vireo"), folder, &format!("image {line}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "vireo image {line}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn theirs(folder: &Path, line: &str) -> String {
    let output = run("qemu-img", folder, line);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "qemu-img {line}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A folder with `a.raw`: data, zeros and holes. `None` where `qemu-img` is missing.
fn folder() -> Option<tempfile::TempDir> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: qemu-img is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut content = vec![0; 8 << 20];
    let mut seed = 1_u32;
    for (at, byte) in content.iter_mut().enumerate() {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = match at >> 18 & 3 {
            0 => (seed >> 24) as u8,
            1 => (at >> 9) as u8,
            _ => 0,
        };
    }
    std::fs::write(folder.path().join("a.raw"), content).unwrap();
    Some(folder)
}

#[test]
fn converted_images_are_the_same_for_both() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    for options in [
        "",
        "-t unsafe",
        "-c",
        "-c -o compression_type=zstd -W -m 4",
        "-o extended_l2=on",
        "-o compat=0.10",
        "-m 1 -S 0",
    ] {
        ours(folder, &format!("convert -f raw -O qcow2 {options} a.raw b.qcow2"));
        theirs(folder, "check -q b.qcow2");
        theirs(folder, "compare -q a.raw b.qcow2");
        ours(folder, "convert -f qcow2 -O raw b.qcow2 c.raw");
        ours(folder, "compare -f raw -F raw -s a.raw c.raw");
    }
}

/// Counted by `strace`, which follows every thread.
#[test]
fn an_unsafe_conversion_waits_for_no_disk() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    if Command::new("strace").arg("-V").output().is_err() {
        return eprintln!("skipped: strace is not installed");
    }
    for format in ["qcow2", "raw", "vdi", "vpc", "vhdx", "vmdk"] {
        let syncs = |cache: &str| {
            let program = env!("CARGO_BIN_EXE_vireo");
            let line = format!(
                "-f -qq -e trace=fsync,fdatasync,sync_file_range,syncfs -e signal=none -o calls {program} image convert \
                 -t {cache} -f raw -O {format} a.raw out"
            );
            let output = run("strace", folder, &line);
            if !output.status.success() {
                eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
                return None;
            }
            theirs(folder, &format!("compare -q -f raw -F {format} a.raw out"));
            Some(std::fs::read_to_string(folder.join("calls")).unwrap())
        };
        let (Some(lazy), Some(safe)) = (syncs("unsafe"), syncs("writeback")) else { return };
        assert_eq!(lazy, "", "{format}");
        assert!(safe.contains("sync"), "{format}: {safe}");
    }
}

/// Every mode makes the same image, reads the same, and does on the host's file what its name says.
#[test]
fn cache_modes_are_those_of_qemu() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    let program = env!("CARGO_BIN_EXE_vireo");
    let mut syncs = std::collections::BTreeMap::new();
    for cache in ["writeback", "writethrough", "none", "directsync", "unsafe"] {
        for format in ["qcow2", "raw", "vmdk"] {
            ours(folder, &format!("convert -t {cache} -f raw -O {format} a.raw out"));
            theirs(folder, &format!("compare -q -f raw -F {format} a.raw out"));
            ours(folder, &format!("convert -T {cache} -f {format} -O raw out back.raw"));
            theirs(folder, "compare -q -f raw -F raw a.raw back.raw");
            ours(folder, &format!("compare -T {cache} -f raw -F {format} a.raw out"));
            if format == "qcow2" {
                ours(folder, &format!("check -q -T {cache} -f qcow2 out"));
                theirs(folder, "check -q -f qcow2 out");
            }
        }
        theirs(folder, "convert -f raw -O qcow2 a.raw base.qcow2");
        theirs(folder, "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
        theirs(folder, "create -q -f qcow2 other.qcow2 8M");
        let write = ["-c", "write -P 9 300k 5000", "top.qcow2"];
        assert!(Command::new("qemu-io").args(write).current_dir(folder).output().unwrap().status.success());
        theirs(folder, "convert -f qcow2 -O raw top.qcow2 merged.raw");
        ours(folder, &format!("commit -q -d -t {cache} top.qcow2"));
        theirs(folder, "compare -q -f qcow2 -F raw base.qcow2 merged.raw");
        ours(folder, &format!("rebase -t {cache} -T {cache} -b other.qcow2 -F qcow2 top.qcow2"));
        theirs(folder, "compare -q -f qcow2 -F raw top.qcow2 merged.raw");
        theirs(folder, "check -q top.qcow2");
        let calls = format!(
            "-f -qq -e signal=none -e trace=openat,fdatasync -o calls {program} image convert -S 0 -m 1 -t {cache} -f raw a.raw out"
        );
        match Command::new("strace").args(calls.split_whitespace()).current_dir(folder).output() {
            Ok(output) if output.status.success() => {
                let calls = std::fs::read_to_string(folder.join("calls")).unwrap();
                let direct = calls.lines().any(|line| line.contains("\"out\"") && line.contains("O_DIRECT"));
                assert_eq!(direct, matches!(cache, "none" | "directsync"), "{cache}: {calls}");
                syncs.insert(cache, calls.matches("fdatasync").count());
            }
            other => eprintln!("skipped the look at system calls: strace: {other:?}"),
        }
    }
    if let (Some(back), Some(through)) = (syncs.get("writeback"), syncs.get("writethrough")) {
        assert_eq!((syncs["unsafe"], syncs["none"], syncs["directsync"]), (0, *back, *through));
        // 8 MiB in pieces of 1 MiB.
        assert!(*through >= back + 8, "{syncs:?}");
    }
}

/// The rate is printed and the same requests succeed as with `qemu-img bench`; writes change the disk.
#[test]
fn a_bench_does_the_requests_it_says() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    for aio in ["threads", "io_uring", "auto"] {
        for cache in ["writeback", "none"] {
            theirs(folder, "convert -f raw -O qcow2 a.raw b.qcow2");
            let line = format!("bench -c 500 -d 32 -s 8k -S 12k -i {aio} -t {cache} -f qcow2 b.qcow2");
            let output = run(env!("CARGO_BIN_EXE_vireo"), folder, &format!("image {line}"));
            let error = String::from_utf8_lossy(&output.stderr);
            if aio == "io_uring" && error.contains("which this host refuses") {
                eprintln!("skipped: {error}");
                continue;
            }
            assert!(output.status.success(), "{line}: {error}");
            theirs(folder, "compare -q -f raw -F qcow2 a.raw b.qcow2");
            ours(folder, &line.replace("bench", "bench -w"));
            theirs(folder, "check -q b.qcow2");
            // The same with the other program: zeros are written to the same places.
            theirs(folder, "convert -f raw -O qcow2 a.raw c.qcow2");
            theirs(folder, "bench -q -c 500 -d 1 -s 8k -S 12k -w --pattern=0 -f qcow2 c.qcow2");
            theirs(folder, "compare -q -f qcow2 -F qcow2 b.qcow2 c.qcow2");
        }
    }
}

#[test]
fn maps_and_measures_are_those_of_qemu_img() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    theirs(folder, "convert -O qcow2 a.raw b.qcow2");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    // Versions of qemu-img before 8.1 do not tell what is compressed.
    let map = |text: &str| {
        let mut list = json(text);
        list.as_array_mut().into_iter().flatten().filter_map(|extent| extent.as_object_mut()).for_each(
            |extent| {
                extent.remove("compressed");
            },
        );
        list
    };
    assert_eq!(map(&ours(folder, "map --json b.qcow2")), map(&theirs(folder, "map --output=json b.qcow2")));
    for options in [
        "--size 10G",
        "--size 1T -o cluster_size=4k",
        "--size 100M -o extended_l2=on,refcount_bits=1",
        "a.raw",
    ] {
        let (our, their) = (
            json(&ours(folder, &format!("measure --output json -O qcow2 {options}"))),
            json(&theirs(folder, &format!("measure --output=json -O qcow2 {options}"))),
        );
        assert_eq!(our["fully-allocated"], their["fully-allocated"], "{options}");
        assert_eq!(our["required"], their["required"], "{options}");
    }
    let (our, their) =
        (json(&ours(folder, "info --json b.qcow2")), json(&theirs(folder, "info --output=json b.qcow2")));
    for field in ["virtual-size", "format", "cluster-size", "dirty-flag"] {
        assert_eq!(our[field], their[field], "{field}");
    }
    assert_eq!(our["format-specific"]["data"], their["format-specific"]["data"]);
}

#[test]
fn a_chain_is_committed_and_rebased() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    theirs(folder, "convert -O qcow2 a.raw base.qcow2");
    ours(folder, "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    let io = |command: &str| {
        let output =
            Command::new("qemu-io").args(["-c", command, "top.qcow2"]).current_dir(folder).output().unwrap();
        assert!(output.status.success());
    };
    io("write -P 7 1000000 300000");
    io("write -z 4M 1M");
    ours(folder, "convert -f qcow2 -O raw top.qcow2 wanted.raw");
    theirs(folder, "compare -q top.qcow2 wanted.raw");
    // Another base with the same content but a hole less: only the difference is written.
    theirs(folder, "convert -O raw base.qcow2 other.raw");
    ours(folder, "rebase -b other.raw -F raw top.qcow2");
    theirs(folder, "compare -q top.qcow2 wanted.raw");
    theirs(folder, "check -q top.qcow2");
    ours(folder, "commit -q top.qcow2");
    theirs(folder, "compare -q -f raw other.raw wanted.raw");
    theirs(folder, "compare -q top.qcow2 wanted.raw");
    theirs(folder, "check -q top.qcow2");
}

#[test]
fn a_backing_file_elsewhere_needs_permission() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    let other = tempfile::tempdir().unwrap();
    let base = other.path().join("base.raw");
    std::fs::copy(folder.join("a.raw"), &base).unwrap();
    theirs(folder, &format!("create -q -f qcow2 -b {} -F raw top.qcow2", base.display()));
    let refused = run(env!("CARGO_BIN_EXE_vireo"), folder, "image convert -O raw top.qcow2 out.raw");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not inside a directory that was allowed"));
    ours(folder, &format!("--backing-dir {} convert -O raw top.qcow2 out.raw", other.path().display()));
    theirs(folder, "compare -q -f raw -F raw a.raw out.raw");
}

#[test]
fn bitmaps_are_kept_by_both() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    ours(folder, "create -q -f qcow2 b.qcow2 16M");
    ours(folder, "bitmap --add -g 64k b.qcow2 ours");
    theirs(folder, "bitmap --add b.qcow2 theirs");
    let output = Command::new("qemu-io")
        .args(["-c", "write 1M 200k", "b.qcow2"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success());
    let list: serde_json::Value =
        serde_json::from_str(&ours(folder, "bitmap --list --json b.qcow2")).unwrap();
    // 200 KiB from 1 MiB on touch four pieces of 64 KiB.
    assert_eq!(
        (&list[0]["dirty"], &list[1]["dirty"]),
        (&serde_json::json!(262_144), &serde_json::json!(262_144))
    );
    ours(folder, "bitmap --clear b.qcow2 theirs");
    ours(folder, "bitmap --merge ours b.qcow2 theirs");
    theirs(folder, "check -q b.qcow2");
    ours(folder, "bitmap --remove b.qcow2 ours");
    theirs(folder, "check -q b.qcow2");
    let info = theirs(folder, "info --output=json b.qcow2");
    assert!(info.contains("theirs") && !info.contains("\"ours\""));
}

#[test]
fn leaks_and_corruption_are_found_and_repaired() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    ours(folder, "convert -f raw -O qcow2 a.raw b.qcow2");
    let path = folder.join("b.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    // The first refcount block is in cluster 2; one count too high, one too low.
    let block = 2 << 16;
    bytes[block + 2 * 6 + 1] = 9;
    bytes[block + 2 * 8 + 1] = 0;
    std::fs::write(&path, bytes).unwrap();
    let found = run(env!("CARGO_BIN_EXE_vireo"), folder, "image check b.qcow2");
    assert_eq!(found.status.code(), run("qemu-img", folder, "check b.qcow2").status.code());
    assert_eq!(found.status.code(), Some(2));
    ours(folder, "check --repair all b.qcow2");
    theirs(folder, "check -q b.qcow2");
    theirs(folder, "compare -q a.raw b.qcow2");
}

#[test]
fn encrypted_images_are_the_same_for_both() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    std::fs::write(folder.join("one"), "first").unwrap();
    std::fs::write(folder.join("two"), "second").unwrap();
    let time = "iter-time=10";
    ours(folder, &format!("convert --key-file one -f raw -O luks -o {time} a.raw b.luks"));
    let opened = "driver=luks,key-secret=s,file.filename=b.luks";
    theirs(folder, &format!("convert --object secret,id=s,file=one --image-opts {opened} -O raw c.raw"));
    ours(folder, "compare -f raw -F raw -s a.raw c.raw");
    let shape = format!("encrypt.format=luks,encrypt.key-secret=t,encrypt.{time}");
    let secret = "--object secret,id=t,file=two";
    ours(folder, &format!("convert --key-file one {secret} -f luks -O qcow2 -o {shape} b.luks d.qcow2"));
    let opened = "driver=qcow2,encrypt.key-secret=t,file.driver=file,file.filename=d.qcow2";
    theirs(folder, &format!("convert {secret} --image-opts {opened} -O raw e.raw"));
    ours(folder, "compare -f raw -F raw -s a.raw e.raw");
    let theirs_info: serde_json::Value =
        serde_json::from_str(&theirs(folder, "info --output json b.luks")).unwrap();
    let ours_info: serde_json::Value = serde_json::from_str(&ours(folder, "info --json b.luks")).unwrap();
    for key in ["format", "virtual-size", "encrypted"] {
        assert_eq!(ours_info[key], theirs_info[key], "{key}");
    }
    ours(folder, "check d.qcow2");
    for (line, what) in [
        ("convert -f luks -O raw b.luks f.raw", "is needed"),
        ("convert --key-file two -f luks -O raw b.luks f.raw", "no key slot"),
        ("convert --key-file none -f luks -O raw b.luks f.raw", "none"),
        ("create -f luks -o key-secret=x g.luks 1M", "id=x"),
        ("create -f luks g.luks 1M", "is needed"),
        (
            "convert --key-file one -c -f raw -O qcow2 -o encrypt.format=luks,encrypt.iter-time=10 a.raw g.qcow2",
            "compress",
        ),
    ] {
        let output = run(env!("CARGO_BIN_EXE_vireo"), folder, &format!("image {line}"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(what), "{line}: {text}");
    }
    assert!(!folder.join("g.luks").exists(), "a refused image leaves no file");
}

/// A disk on a web server, through a format and as a machine sees it: the same bytes as the file's.
#[test]
fn an_image_on_a_web_server_is_read() {
    let Some(folder) = folder() else { return };
    let folder = folder.path();
    theirs(folder, "convert -f raw -O qcow2 a.raw b.qcow2");
    for (file, format) in [("a.raw", "raw"), ("b.qcow2", "qcow2")] {
        let (_site, address) = server::Site::new(std::fs::read(folder.join(file)).unwrap()).start();
        ours(folder, &format!("convert -f {format} -O raw {address} out.raw"));
        theirs(folder, "compare -q -f raw -F raw a.raw out.raw");
        let refused = run(env!("CARGO_BIN_EXE_vireo"), folder, &format!("image resize {address} +1M"));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("can only be read"));
    }
}

#[test]
fn what_ends_like_a_dmg_is_looked_at_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut content = vec![0; 8192];
    content[8192 - 512..][..4].copy_from_slice(b"koly");
    std::fs::write(folder.join("a.dmg"), content).unwrap();
    for line in ["image info a.dmg", "image info -f dmg a.dmg"] {
        let refused = run(env!("CARGO_BIN_EXE_vireo"), folder, line);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains("Version is 0"), "{text}");
    }
    let made = run(env!("CARGO_BIN_EXE_vireo"), folder, "image create -f dmg b.dmg 1M");
    let text = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(!made.status.success() && text.contains("read, not made"), "{text}");
    ours(folder, "info -f raw a.dmg");
}

/// A device keeps what it had: zeros of the source have to be written.
#[test]
fn zeros_are_written_to_a_device() {
    let Some(folder) = folder() else { return };
    let content = std::fs::read(folder.path().join("a.raw")).unwrap();
    std::fs::write(folder.path().join("old"), vec![0xee; content.len()]).unwrap();
    let attached = Command::new("losetup").args(["-f", "--show"]).arg(folder.path().join("old")).output();
    let Some(device) = attached.ok().filter(|output| output.status.success()) else {
        eprintln!("skipped: no loop device can be had (losetup, and the right to use it)");
        return;
    };
    let device = String::from_utf8_lossy(&device.stdout).trim().to_owned();
    let same = |line: &str| {
        std::fs::write(&device, vec![0xee; content.len()]).unwrap();
        let output = run(env!("CARGO_BIN_EXE_vireo"), folder.path(), &format!("image {line}"));
        (output.status.success(), std::fs::read(&device).unwrap() == content)
    };
    let converted = same(&format!("convert -f raw -O raw a.raw {device}"));
    let copied = same(&format!("dd -f raw -O raw if=a.raw of={device} bs=1M"));
    Command::new("losetup").args(["-d", &device]).output().unwrap();
    assert_eq!((converted, copied), ((true, true), (true, true)));
}

/// A new file for which there is no space is not left behind, and an incomplete copy is called that.
#[test]
fn no_space_is_told_with_the_name_of_the_file() {
    let Some(folder) = folder() else { return };
    let path = folder.path();
    std::fs::create_dir(path.join("small")).unwrap();
    let mounted = run("mount", path, "-t tmpfs -o size=1M tmpfs small");
    if !mounted.status.success() {
        eprintln!("skipped: no file system can be mounted");
        return;
    }
    let say = |line: &str| {
        let output = run(env!("CARGO_BIN_EXE_vireo"), path, &format!("image {line}"));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let created = say("create -f raw -o preallocation=full small/new.raw 20M");
    let left = path.join("small/new.raw").exists();
    let copied =
        [say("convert -f raw -O qcow2 a.raw small/b"), say("dd -f raw -O raw if=a.raw of=small/c bs=1M")];
    run("umount", path, "small");
    assert!(!created.0 && created.1.contains("small/new.raw") && !left, "{created:?}, left: {left}");
    for ((done, text), name) in copied.iter().zip(["small/b", "small/c"]) {
        let told = text.contains(&format!("{name}, which is not complete: No space left"));
        assert!(!done && told, "{text}");
    }
}
