use super::*;
use crate::fs::Kind;

fn dir(builder: &mut TreeBuilder) -> ObjectId {
    let (times, system) = (Times::default(), false);
    builder.object(Object { kind: Kind::Dir, number: 0, times, attributes: 0, mode: None, owner: None, system })
}

#[test]
fn a_chain_of_directories_ends_where_no_path_could_be_used() {
    let mut builder = TreeBuilder::new();
    let root = dir(&mut builder);
    let mut deep = root;
    for _ in 0..100_000 {
        let new = dir(&mut builder);
        builder.entry(deep, b"d", new);
        deep = new;
    }
    let tree = builder.finish(root);
    assert_eq!(tree.order().len(), MAX_PATH / 2);
    let (last, depth) = tree.order().last().unwrap();
    assert_eq!((tree.path(last).len() + 1, depth as usize), (MAX_PATH, MAX_PATH / 2));
    let [problem] = tree.problems() else { panic!("{:?}", tree.problems()) };
    assert!(problem.what.starts_with("1 entries") && problem.object.is_some(), "{problem:?}");
}

#[test]
fn siblings_are_in_order_however_many_directories_there_are() {
    let mut builder = TreeBuilder::new();
    let root = dir(&mut builder);
    let dirs: Vec<ObjectId> = (0..300).map(|_| dir(&mut builder)).collect();
    for (n, of) in dirs.iter().enumerate() {
        builder.entry(root, format!("{:x}", n * 7919 % 4096).as_bytes(), *of);
    }
    for n in 0..60_000_usize {
        let new = dir(&mut builder);
        // Of some directories many, of others none.
        builder.entry(dirs[n * n % 300], format!("{:x}", n * 7919 % 65_536).as_bytes(), new);
    }
    let tree = builder.finish(root);
    assert_eq!(tree.order().len(), 60_300);
    for of in dirs.iter().chain([&root]) {
        let names: Vec<&[u8]> = tree.children(*of).iter().map(|e| tree.name(*e)).collect();
        assert!(names.is_sorted() && tree.children(*of).iter().all(|e| tree.entry(*e).parent == *of));
    }
    let all: usize = dirs.iter().chain([&root]).map(|of| tree.children(*of).len()).sum();
    assert_eq!(all, 60_300);
}
