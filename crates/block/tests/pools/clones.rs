//! Linked clones and templates: what they share, what they cost, and what outlives its source.

use crate::setup::{self, CHUNK, cases, content, members, same, text};
use block::BlockBackend;
use block::pool::{Layout, Pool, Provisioning, VolumeInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: usize = 8 * CHUNK;

/// A pool of two members with a volume `golden`, full of ones, and its snapshot `v1`.
fn golden(layout: Layout) -> Result<Arc<Pool>, String> {
    let members = members(&[120, 120], 1);
    setup::create(&members)?;
    let pool = setup::open(&members)?;
    pool.create_volume("golden", SIZE as u64, layout, Provisioning::Thin, &[]).map_err(text)?;
    pool.volume("golden", false).and_then(|disk| disk.write_bytes(0, &[1; SIZE])).map_err(text)?;
    pool.create_snapshot("golden", "v1").map_err(text)?;
    Ok(pool)
}

fn info(pool: &Pool, name: &str) -> VolumeInfo {
    pool.info().volumes.into_iter().find(|volume| volume.name == name).unwrap()
}

fn used(pool: &Pool) -> u64 {
    pool.info().members.iter().map(|member| member.used).sum::<u64>() / CHUNK as u64
}

#[test]
fn a_clone_costs_what_it_writes_and_outlives_its_source() {
    let pool = golden(Layout::Linear).unwrap();
    pool.clone_volume("golden@v1", "web").unwrap();
    assert_eq!(used(&pool), 8);
    let web = pool.volume("web", false).unwrap();
    web.write_bytes(CHUNK as u64 + 512, &[2; 512]).unwrap();
    assert_eq!(
        (used(&pool), info(&pool, "web").allocated, info(&pool, "web").shared),
        (9, CHUNK as u64, 7 * CHUNK as u64)
    );
    assert_eq!(info(&pool, "web").origin.as_deref(), Some("golden@v1"));
    assert_eq!(info(&pool, "golden").snapshots[0].clones, ["web"]);
    let golden = pool.volume("golden", false).unwrap();
    golden.write_bytes(0, &[3; CHUNK]).unwrap();
    let mut expected = vec![1; SIZE];
    expected[CHUNK + 512..CHUNK + 1024].fill(2);
    same("the clone", &content(&web).unwrap(), &expected).unwrap();
    pool.delete_snapshot("golden", "v1").unwrap();
    assert_eq!(info(&pool, "web").origin.as_deref(), Some("golden"));
    same("the clone", &content(&web).unwrap(), &expected).unwrap();
    drop(golden);
    pool.delete_volume("golden", true).unwrap();
    assert_eq!((used(&pool), info(&pool, "web").origin), (8, None), "the clone has inherited the rest");
    same("the clone", &content(&web).unwrap(), &expected).unwrap();
    drop(web);
    pool.delete_volume("web", false).unwrap();
    assert_eq!(used(&pool), 0);
}

#[test]
fn a_flattened_clone_shares_nothing() {
    let pool = golden(Layout::Mirrored(2)).unwrap();
    pool.clone_volume("golden@v1", "web").unwrap();
    let web = pool.volume("web", false).unwrap();
    web.write_bytes(0, &[2; CHUNK]).unwrap();
    pool.create_snapshot("web", "s").unwrap();
    web.discard(0, 3 * CHUNK as u64).unwrap();
    assert_eq!(pool.flatten("web", &|_| ()).unwrap(), 7);
    assert_eq!((info(&pool, "web").origin, info(&pool, "web").shared), (None, 0));
    assert!(pool.flatten("web", &|_| ()).unwrap_err().to_string().contains("is no clone"));
    pool.delete_volume("golden", true).unwrap();
    let mut expected = vec![1; SIZE];
    expected[..3 * CHUNK].fill(0);
    same("the clone", &content(&web).unwrap(), &expected).unwrap();
    expected[..CHUNK].fill(2);
    expected[CHUNK..3 * CHUNK].fill(1);
    same("its snapshot", &content(&pool.volume("web@s", true).unwrap()).unwrap(), &expected).unwrap();
    assert_eq!(used(&pool), 2 * 8, "every chunk is there once on each of two members");
    assert!(pool.scrub(false, &|_| ()).unwrap().is_clean());
}

#[test]
fn a_template_is_not_written_to_and_clones_need_no_snapshot() {
    let pool = golden(Layout::Striped).unwrap();
    let refused = |result: std::io::Result<()>, text: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    refused(pool.clone_volume("golden", "web"), "is no template");
    refused(pool.clone_volume("golden@v2", "web"), "no snapshot \"v2\"");
    pool.volume("golden", false).unwrap().write_bytes(0, &[7; 512]).unwrap();
    pool.set_template("golden", true).unwrap();
    pool.set_template("golden", true).unwrap();
    let golden = pool.volume("golden", false).unwrap();
    assert!(golden.is_read_only() && golden.write_bytes(0, &[1; 512]).is_err());
    assert!(golden.resize(SIZE as u64 * 2).is_err() && golden.discard(0, SIZE as u64).is_err());
    refused(pool.revert("golden", "v1"), "is a template");
    refused(pool.delete_snapshot("golden", "template"), "what the template is made of");
    pool.clone_volume("golden", "web").unwrap();
    refused(pool.clone_volume("golden", "web"), "a volume \"web\" already");
    let mut expected = vec![1; SIZE];
    expected[..512].fill(7);
    same("the clone", &content(&pool.volume("web", true).unwrap()).unwrap(), &expected).unwrap();
    pool.set_template("golden", false).unwrap();
    pool.volume("golden", false).unwrap().write_bytes(0, &[9; 512]).unwrap();
    same("the clone", &content(&pool.volume("web", true).unwrap()).unwrap(), &expected).unwrap();
}

/// A clone is written to while its source is moved, loses its snapshot and goes, and while the clone is flattened.
fn together(seed: u64) -> Result<(), String> {
    let pool = golden(if seed.is_multiple_of(2) { Layout::Linear } else { Layout::Mirrored(2) })?;
    pool.clone_volume("golden@v1", "web").map_err(text)?;
    pool.clone_volume("golden@v1", "mail").map_err(text)?;
    let web = pool.volume("web", false).map_err(text)?;
    let mut expected = vec![1; SIZE];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let manage = || {
                for member in ["0", "1", "0"] {
                    let to: &[String] = if seed.is_multiple_of(2) { &[member.to_owned()] } else { &[] };
                    if !to.is_empty() {
                        pool.move_volume("golden", to, &|_| ())?;
                    }
                    pool.scrub(true, &|_| ())?;
                }
                pool.delete_snapshot("golden", "v1")?;
                pool.flatten(if seed.is_multiple_of(3) { "web" } else { "mail" }, &|_| ())?;
                pool.delete_volume("golden", true)?;
                pool.delete_volume("mail", true)
            };
            let result = manage().map_err(text);
            done.store(true, Ordering::SeqCst);
            result
        });
        let mut random = crate::random::Random(seed);
        let mut result = Ok(());
        while result.is_ok() && !done.load(Ordering::SeqCst) {
            let at = random.below(SIZE as u64 / 512) as usize * 512;
            let len = (512 * (1 + random.below(40) as usize)).min(SIZE - at);
            let mut found = vec![0; len];
            result = web.read_bytes(at as u64, &mut found).map_err(text);
            result = result.and_then(|()| same("read", &found, &expected[at..at + len]));
            if random.chance(30) {
                expected[at..at + len].fill(random.next() as u8);
                result =
                    result.and_then(|()| web.write_bytes(at as u64, &expected[at..at + len]).map_err(text));
            }
        }
        result.and(other.join().map_err(|_| "the manager panicked".to_owned())?)
    })?;
    same("the clone", &content(&web)?, &expected)
}

#[test]
fn a_clone_is_used_while_its_source_goes() {
    cases(6, together);
}
