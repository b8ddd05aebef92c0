//! What is kept of former fuzzing, one file a case.

use std::fs;
use std::path::Path;

fn all(of: &str, take_in: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(of);
    let mut files: Vec<_> = fs::read_dir(folder).expect("a corpus").flatten().collect();
    files.sort_by_key(fs::DirEntry::path);
    assert!(files.len() > 10, "it is not all there");
    for file in files {
        println!("{}", file.path().display()); // seen if it fails
        take_in(&fs::read(file.path()).expect("a file"));
    }
}

#[test]
fn every_url_of_the_corpus_is_read_or_is_an_error() {
    all("url", super::url);
}

#[test]
fn every_reply_of_the_corpus_is_understood_or_is_an_error() {
    all("reply", super::reply);
}
