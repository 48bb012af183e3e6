//! Pool files, and volumes by their paths.

use block::pool::{OpenPool, PoolFile};
use block::{CreateOptions, DiskImage, OpenOptions, Repair};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SIZE: u64 = 3 << 20;

fn folder(members: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for member in members {
        std::fs::File::create(folder.path().join(member)).unwrap().set_len(16 << 20).unwrap();
    }
    let members: Vec<PathBuf> = members.iter().map(PathBuf::from).collect();
    PoolFile::create(&folder.path().join("web.pool"), &members, 1 << 16, false).unwrap();
    folder
}

fn make(path: &Path, layout: &str) -> Result<(), String> {
    let mut options = CreateOptions { size: SIZE, ..CreateOptions::default() };
    options.options.insert("layout".into(), layout.into());
    block::create(path, "pool", options).map_err(|error| block::with_causes(&error))
}

fn open(path: &Path) -> Result<Arc<dyn DiskImage>, String> {
    block::open(path, "pool", &OpenOptions::default()).map_err(|error| block::with_causes(&error))
}

#[test]
fn volumes_are_images() {
    let folder = folder(&["a", "b"]);
    let pool = folder.path().join("web.pool");
    let (root, data) = (pool.join("root"), pool.join("data"));
    make(&root, "mirrored").unwrap();
    make(&data, "striped").unwrap();
    assert!(make(&data, "striped").unwrap_err().contains("already"));
    assert!(make(&pool.join("x"), "round").unwrap_err().contains("striped"));
    assert_eq!(block::probe(&root).unwrap(), "pool");
    {
        // Two volumes of one pool at once, each written by one.
        let (one, two) = (open(&root).unwrap(), open(&data).unwrap());
        one.write_bytes(1000, &[1; 300_000]).unwrap();
        two.write_bytes(0, &[2; 512]).unwrap();
        assert!(open(&root).err().unwrap().contains("in use"));
        let snapshots = one.snapshots().unwrap();
        assert_eq!(snapshots.create("s").unwrap().disk_size, SIZE);
        one.write_bytes(0, &[3; 2000]).unwrap();
        assert_eq!(one.info().unwrap().snapshots.len(), 1);
        assert!(one.check(Repair::Nothing).unwrap().is_clean());
    }
    let mut expected = vec![0; SIZE as usize];
    expected[1000..301_000].fill(1);
    let mut found = vec![9; SIZE as usize];
    let snapshot = block::open(&pool.join("root@s"), "pool", &OpenOptions::reading()).unwrap();
    snapshot.read_bytes(0, &mut found).unwrap();
    assert!(found == expected);
    drop(snapshot);
    expected[..2000].fill(3);
    open(&root).unwrap().read_bytes(0, &mut found).unwrap();
    assert!(found == expected);
    assert!(open(&pool.join("none")).err().unwrap().contains("no volume"));
    assert!(open(&pool).err().unwrap().contains("POOL-FILE/VOLUME"));
}

#[test]
fn members_come_and_go_in_the_pool_file() {
    let folder = folder(&["a", "b"]);
    let path = folder.path().join("web.pool");
    make(&path.join("v"), "linear").unwrap();
    open(&path.join("v")).unwrap().write_bytes(0, &[7; 1 << 20]).unwrap();
    std::fs::File::create(folder.path().join("c")).unwrap().set_len(16 << 20).unwrap();
    {
        let pool = PoolFile::open(&path, OpenPool::default()).unwrap();
        PoolFile::add(&path, &pool, Path::new("c"), false).unwrap();
        PoolFile::remove(&path, &pool, "a", &|_| ()).unwrap();
    }
    assert_eq!(PoolFile::read(&path).unwrap().members, [PathBuf::from("b"), PathBuf::from("c")]);
    // It has left: another pool may have it, but not one that is still a member.
    PoolFile::create(&folder.path().join("other.pool"), &["a".into()], 1 << 16, false).unwrap();
    let error =
        PoolFile::create(&folder.path().join("third.pool"), &["b".into()], 1 << 16, false).unwrap_err();
    assert!(error.to_string().contains("belongs to a pool"), "{error}");
    let mut found = vec![0; 1 << 20];
    open(&path.join("v")).unwrap().read_bytes(0, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 7));
    std::fs::write(&path, "members = 3").unwrap();
    assert!(PoolFile::read(&path).unwrap_err().to_string().contains("no pool file"));
}
