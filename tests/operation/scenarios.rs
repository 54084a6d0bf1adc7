//! Every scenario has a test that is there.

use std::path::Path;

#[test]
fn every_scenario_names_tests_that_exist() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(tests.join("scenarios.tsv")).unwrap();
    let sources = |suite: &str| -> String {
        let files = std::fs::read_dir(tests.join(suite)).unwrap().flatten().filter(|f| f.path().is_file());
        files.map(|f| std::fs::read_to_string(f.path()).unwrap()).collect()
    };
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (scenario, names) = line.split_once('\t').unwrap();
        for name in names.split("; ") {
            let (suite, test) = name.split_once(' ').unwrap();
            assert!(sources(suite).contains(&format!("#[test]\nfn {test}()")), "{scenario}: no test {test} in {suite}");
        }
    }
}
