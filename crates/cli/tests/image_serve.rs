//! `vireo image serve` and NBD URIs, with the clients and servers people use.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Whether all programs are there; says which one is not.
fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let asked =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_err()
    });
    if let Some(missing) = missing {
        eprintln!("skipped: {missing} is not installed");
    }
    missing.is_none()
}

/// Runs a line of a shell; it has to succeed.
fn sh(folder: &Path, line: &str) -> String {
    let line = line.replace("VIREO", env!("CARGO_BIN_EXE_vireo"));
    let output = Command::new("sh").args(["-c", &line]).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What a line of a shell says on standard error when it fails, as it has to.
fn fails(folder: &Path, line: &str) -> String {
    let line = line.replace("VIREO", env!("CARGO_BIN_EXE_vireo"));
    let output = Command::new("sh").args(["-c", &line]).current_dir(folder).output().unwrap();
    assert!(!output.status.success(), "{line} succeeds");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running server, and what it says of itself.
struct Server {
    child: Child,
    uris: Vec<String>,
}

impl Server {
    fn start(folder: &Path, line: &str, exports: usize) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vireo"))
            .args(["image", "serve"])
            .args(line.split_whitespace())
            .current_dir(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let uris: Vec<String> = lines.take(exports).map(Result::unwrap).collect();
        assert_eq!(uris.len(), exports, "vireo image serve {line} ends at once");
        Server { child, uris }
    }

    /// Its end after SIGTERM.
    fn end(mut self) {
        let pid = self.child.id();
        assert!(Command::new("kill").arg(pid.to_string()).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with `a.raw` of 16 MiB: noise, text, zeros and holes.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let line = "truncate -s 16M a.raw; head -c 3M /dev/urandom | dd of=a.raw conv=notrunc status=none; \
                yes | head -c 2M | dd of=a.raw bs=1M seek=5 conv=notrunc status=none";
    sh(folder.path(), line);
    folder
}

#[test]
fn libnbd_reads_writes_and_sees_what_is_stored() {
    if !have(&["nbdinfo", "nbdcopy", "qemu-img"]) {
        return;
    }
    let folder = folder();
    let folder = folder.path();
    sh(folder, "qemu-img convert -O qcow2 a.raw a.qcow2; qemu-img bitmap --add a.qcow2 b0");
    sh(folder, "qemu-io -f qcow2 -c 'write -P 9 1M 64k' -c 'write -P 8 8M 128k' a.qcow2 >/dev/null");
    sh(folder, "qemu-img convert -O raw a.qcow2 expected.raw; VIREO image bitmap --disable a.qcow2 b0");
    let server = Server::start(folder, "-t -k s.sock -f qcow2 -B b0 -D text a.qcow2", 1);
    let uri = &server.uris[0];
    let info: serde_json::Value =
        serde_json::from_str(&sh(folder, &format!("nbdinfo --json '{uri}'"))).unwrap();
    let export = &info["exports"][0];
    assert_eq!((&info["structured"], &export["export-size"]), (&true.into(), &(16 << 20).into()));
    assert_eq!((&export["can_multi_conn"], &export["is_read_only"]), (&true.into(), &false.into()));
    assert_eq!(export["description"], "text");
    let contexts = export["contexts"].as_array().unwrap();
    assert!(contexts.contains(&"qemu:dirty-bitmap:b0".into()), "{contexts:?}");
    // What qemu-img sees in the file is what a client sees through the server.
    let map = |context: &str| {
        let text = sh(folder, &format!("nbdinfo --map={context} --json '{uri}'"));
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        list.iter()
            .map(|extent| ["offset", "length", "type"].map(|field| extent[field].as_u64().unwrap()))
            .collect::<Vec<_>>()
    };
    let mib = |parts: &[[u64; 3]]| {
        parts.iter().map(|[at, len, kind]| [at << 16, len << 16, *kind]).collect::<Vec<_>>()
    };
    assert_eq!(
        map("qemu:dirty-bitmap:b0"),
        mib(&[[0, 16, 0], [16, 1, 1], [17, 111, 0], [128, 2, 1], [130, 126, 0]])
    );
    assert_eq!(
        map("base:allocation"),
        mib(&[[0, 48, 0], [48, 32, 3], [80, 32, 0], [112, 16, 3], [128, 2, 0], [130, 126, 3]])
    );
    sh(folder, &format!("nbdcopy '{uri}' b.raw && cmp b.raw expected.raw"));
    sh(folder, &format!("nbdcopy --flush a.raw '{uri}'"));
    sh(folder, &format!("qemu-img compare -f raw -F raw '{uri}' a.raw"));
    server.end();
    sh(folder, "qemu-img check -q a.qcow2 && qemu-img compare -q a.qcow2 a.raw && test ! -e s.sock");
}

#[test]
fn qemu_reads_writes_and_frees() {
    if !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let folder = folder();
    let folder = folder.path();
    sh(folder, "qemu-img convert -O qcow2 a.raw a.qcow2");
    let changes = "-c 'write -P 1 64k 128k' -c 'write -f -P 2 1000k 4k' -c 'write -z 5M 1M' -c 'write -z -u 6M 64k' \
                   -c 'discard 1M 1M' -c 'read -P 2 1000k 4k' -c flush -c 'aio_write -P 3 7M 2M' -c 'aio_read 0 4M' -c aio_flush";
    let server = Server::start(folder, "-t -p 0 -f qcow2 a.qcow2", 1);
    let said = sh(folder, &format!("qemu-io -f raw {changes} {}", server.uris[0]));
    assert!(!said.contains("rror") && !said.contains("ailed"), "{said}");
    // The same on the file itself.
    sh(folder, &format!("qemu-img convert -O qcow2 a.raw b.qcow2; qemu-io -f qcow2 {changes} b.qcow2"));
    server.end();
    sh(folder, "qemu-img check -q a.qcow2 && qemu-img compare -q a.qcow2 b.qcow2");
}

/// Requests need not be sectors: what qemu-io does through the server is what it does to a file, byte for byte, also where
/// sectors are encrypted, and where the host's page cache is bypassed.
#[test]
fn requests_of_any_alignment() {
    if !have(&["qemu-io", "qemu-img", "nbdinfo"]) {
        return;
    }
    let folder = folder();
    let folder = folder.path();
    let mut changes = String::new();
    for (number, (at, len)) in [
        (1, 3),
        (511, 2),
        (65_000, 70_001),
        (1 << 20, 513),
        (0x20_01ff, 1),
        (5_000_001, 4096),
        ((16 << 20) - 1, 1),
    ]
    .into_iter()
    .enumerate()
    {
        changes +=
            &format!(" -c 'write -P {} {at} {len}' -c 'read -P {} {at} {len}'", number + 65, number + 65);
    }
    changes +=
        " -c 'write -z 7000001 300000' -c 'write -z 9000001 17' -c 'read -P 0 7000001 300000' -c flush";
    sh(folder, "cp a.raw expected.raw && qemu-img convert -O qcow2 a.raw a.qcow2 && printf secret > key");
    sh(folder, "VIREO image convert --key-file key -f raw -O luks -o iter-time=10 a.raw a.luks");
    sh(folder, &format!("qemu-io -f raw {changes} expected.raw"));
    for (line, image) in [
        ("-f qcow2 a.qcow2", "-f qcow2 a.qcow2"),
        ("--cache none -f raw a.raw", "-f raw a.raw"),
        ("--key-file key -f luks a.luks", ""),
    ] {
        let server = Server::start(folder, &format!("-t -p 0 {line}"), 1);
        let uri = &server.uris[0];
        let info = sh(folder, &format!("nbdinfo --json '{uri}'"));
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["exports"][0]["block_size_minimum"], 1);
        let said = sh(folder, &format!("qemu-io -f raw {changes} {uri}"));
        assert!(!said.contains("rror") && !said.contains("ailed"), "{line}: {said}");
        sh(folder, &format!("qemu-img compare -f raw -F raw '{uri}' expected.raw"));
        server.end();
        if !image.is_empty() {
            let (flag, name) = image.rsplit_once(' ').unwrap();
            sh(folder, &format!("qemu-img compare -q {flag} -F raw {name} expected.raw"));
        }
    }
}

#[test]
fn fio_finds_what_it_wrote() {
    if !have(&["fio", "qemu-img"]) || !sh(Path::new("."), "fio --enghelp").contains("\tnbd") {
        eprintln!("skipped: fio with its nbd engine is needed");
        return;
    }
    let folder = folder();
    let folder = folder.path();
    sh(folder, "qemu-img create -q -f qcow2 a.qcow2 64M");
    let server = Server::start(folder, "-t -k s.sock -f qcow2 a.qcow2", 1);
    let uri = &server.uris[0];
    let options = "--ioengine=nbd --rw=randwrite --bsrange=4k-64k --iodepth=16 --size=32M --verify=crc32c --output=/dev/null";
    sh(folder, &format!("fio --name=verify {options} '--uri={uri}'"));
    server.end();
    sh(folder, "qemu-img check -q a.qcow2");
}

#[test]
fn several_exports_have_their_own_rights() {
    if !have(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let folder = folder();
    let folder = folder.path();
    sh(folder, "cp a.raw b.raw");
    let line = "-t -p 0 --export name=one,file=a.raw,format=raw,readonly=on --export name=two,file=b.raw,format=raw,description=d";
    let server = Server::start(folder, line, 2);
    let base = server.uris[0].strip_suffix("one").unwrap();
    let list = sh(folder, &format!("nbdinfo --list {base}"));
    assert!(list.contains("export=\"one\"") && list.contains("export=\"two\""), "{list}");
    fails(folder, &format!("nbdcopy a.raw {base}one"));
    fails(folder, &format!("nbdinfo {base}three"));
    sh(folder, &format!("nbdinfo --is read-only {base}one && nbdinfo --can write {base}two"));
    sh(folder, &format!("yes abc | head -c 16M > c.raw; nbdcopy c.raw {base}two"));
    server.end();
    sh(folder, "cmp b.raw c.raw");
}

#[test]
fn a_server_ends_with_its_last_client() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let folder = folder();
    let mut server = Server::start(folder.path(), "-k s.sock -f raw --pid-file pid a.raw", 1);
    let pid = std::fs::read_to_string(folder.path().join("pid"));
    sh(folder.path(), &format!("nbdinfo --size '{}'", server.uris[0]));
    assert!(server.child.wait().unwrap().success());
    assert!(pid.is_ok_and(|pid| pid.trim() == server.child.id().to_string()));
    assert!(!folder.path().join("pid").exists() && !folder.path().join("s.sock").exists());
    // With one connection at most, clients are told so.
    let server = Server::start(folder.path(), "-t -e 1 -k s.sock -f raw a.raw", 1);
    fails(folder.path(), &format!("nbdinfo --can multi-conn '{}'", server.uris[0]));
    server.end();
}

/// An authority, and certificates of a server and of a client.
fn certificates(folder: &Path) {
    let sign = |name: &str, extra: &str| {
        format!(
            "openssl req -newkey rsa:2048 -nodes -keyout {name}-key.pem -out {name}.csr -subj /CN={name} 2>/dev/null && \
             printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\n{extra}' > {name}.ext && \
             openssl x509 -req -in {name}.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
             -extfile {name}.ext -out {name}-cert.pem 2>/dev/null"
        )
    };
    sh(
        folder,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=ca \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>/dev/null",
    );
    sh(folder, &sign("server", "extendedKeyUsage=serverAuth\\n"));
    sh(folder, &sign("client", "extendedKeyUsage=clientAuth\\n"));
}

#[test]
fn tls_lets_in_who_is_known() {
    if !have(&["openssl", "nbdcopy", "nbdinfo", "qemu-img", "qemu-nbd"]) {
        return;
    }
    let folder = folder();
    let folder = folder.path();
    std::fs::create_dir_all(folder.join("pki")).unwrap();
    std::fs::create_dir_all(folder.join("stranger")).unwrap();
    certificates(&folder.join("pki"));
    sh(folder, "cp pki/ca-cert.pem stranger/");
    let pki = folder.join("pki").display().to_string();
    let server = Server::start(folder, "-t -b localhost -p 0 -f raw --tls pki --tls-verify-peer a.raw", 1);
    let uri = &server.uris[0];
    sh(folder, &format!("nbdcopy '{uri}?tls-certificates={pki}' b.raw && cmp a.raw b.raw"));
    sh(folder, &format!("VIREO image convert '{uri}?tls-certificates={pki}' c.raw && cmp a.raw c.raw"));
    let port = uri.trim_end_matches('/').rsplit(':').next().unwrap();
    sh(
        folder,
        &format!(
            "qemu-img convert --object tls-creds-x509,id=t,dir={pki},endpoint=client -O raw --image-opts \
             driver=nbd,host=localhost,port={port},tls-creds=t d.raw && cmp a.raw d.raw"
        ),
    );
    fails(folder, &format!("nbdinfo '{uri}?tls-certificates={}'", folder.join("stranger").display()));
    fails(folder, &format!("VIREO image info '{uri}?tls-certificates=stranger'"));
    let plain = fails(folder, &format!("VIREO image info '{}'", uri.replace("nbds:", "nbd:")));
    assert!(plain.contains("demands TLS"), "{plain}");
    fails(folder, &format!("nbdinfo '{}'", uri.replace("nbds:", "nbd:")));
    server.end();
    // Our client with their server.
    let line = format!(
        "exec qemu-nbd -r -t -f raw -k $PWD/q.sock --object tls-creds-x509,id=t,dir={pki},endpoint=server,verify-peer=on --tls-creds t a.raw"
    );
    let child = Command::new("sh").args(["-c", &line]).current_dir(folder).spawn().unwrap();
    let server = Server { child, uris: Vec::new() };
    sh(folder, "for i in $(seq 3000); do test -e q.sock && exit; sleep 0.01; done; exit 1");
    let uri = format!("nbds+unix:///?socket={}/q.sock&tls-certificates={pki}", folder.display());
    sh(folder, &format!("VIREO image convert '{uri}' e.raw && cmp a.raw e.raw"));
    drop(server);
}

#[test]
fn exports_are_images_for_every_command() {
    if !have(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let folder = folder();
    let folder = folder.path();
    sh(folder, "qemu-img create -q -f raw b.raw 16M; qemu-img convert -O qcow2 a.raw a.qcow2");
    let serve = |socket: &str, line: &str| {
        let line = format!("exec qemu-nbd -t -k $PWD/{socket} {line}");
        let child = Command::new("sh").args(["-c", &line]).current_dir(folder).spawn().unwrap();
        sh(folder, &format!("for i in $(seq 3000); do test -e {socket} && exit; sleep 0.01; done; exit 1"));
        Server { child, uris: vec![format!("nbd+unix:///?socket={}", folder.join(socket).display())] }
    };
    let source = serve("source.sock", "-r -f qcow2 a.qcow2");
    let target = serve("target.sock", "-f raw b.raw");
    let file = serve("file.sock", "-r -f raw a.qcow2");
    let [source_uri, target_uri, file_uri] = [&source, &target, &file].map(|server| server.uris[0].clone());
    sh(folder, &format!("VIREO image convert -O qcow2 '{source_uri}' c.qcow2"));
    sh(folder, "qemu-img check -q c.qcow2 && qemu-img compare -q c.qcow2 a.raw");
    sh(folder, &format!("VIREO image convert a.qcow2 '{target_uri}'"));
    sh(folder, &format!("VIREO image compare '{target_uri}' a.qcow2"));
    // A format over an export.
    sh(folder, &format!("VIREO image compare -f qcow2 -F raw '{file_uri}' a.raw"));
    let info = sh(folder, &format!("VIREO image info -f qcow2 --json '{file_uri}'"));
    assert!(info.contains("\"qcow2\""), "{info}");
    let error = fails(folder, "VIREO image info 'nbd+unix:///?socket=/nowhere'");
    assert!(error.contains("/nowhere") && error.lines().count() == 1, "{error}");
    drop((source, target, file));
    sh(folder, "cmp a.raw b.raw");
}
