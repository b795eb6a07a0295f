//! Runs a bench several times and prints its medians as ratios to the floor of the same run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::Criterion;
use serde_json::Value;

/// A machine's mood lasts longer than a bench: floor and bench take turns, for about a second each.
const RUNS: usize = 5;

/// In every group, what the others are measured against.
pub const FLOOR: &str = "floor";

/// Median nanoseconds per call of every function of every group, for one run.
type Medians = BTreeMap<String, BTreeMap<String, f64>>;

/// Runs the benches and prints the table; for a bench's `main`.
pub fn compare(name: &str, benches: fn(&mut Criterion)) {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&output); // else criterion compares with the last time
    let runs: Vec<Medians> = (0..RUNS)
        .map(|run| {
            let output = output.join(run.to_string());
            let mut criterion = Criterion::default()
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_secs(1))
                .sample_size(30)
                .configure_from_args()
                .output_directory(&output);
            benches(&mut criterion);
            medians(&output)
        })
        .collect();
    print(&runs);
}

fn print(runs: &[Medians]) {
    println!("\n| | | floor, ns | ns | ratio |\n|---|---|---:|---:|---:|");
    let compared = |functions: &BTreeMap<_, _>| functions.contains_key(FLOOR); // unless filtered
    for (group, functions) in runs[0].iter().filter(|(_, functions)| compared(functions)) {
        for function in functions.keys().filter(|name| *name != FLOOR) {
            let pairs = runs
                .iter()
                .map(|run| (run[group][FLOOR], run[group][function]));
            let floor = median(pairs.clone().map(|(floor, _)| floor));
            let this = median(pairs.clone().map(|(_, this)| this));
            let ratio = median(pairs.map(|(floor, this)| this / floor));
            println!("| {group} | {function} | {floor:.1} | {this:.1} | {ratio:.2} |");
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What criterion wrote down; nothing when it only tested the benches.
fn medians(output: &Path) -> Medians {
    let mut medians = Medians::new();
    for directory in entries(output).iter().flat_map(|group| entries(group)) {
        let read = |file: &str| -> Option<Value> {
            let json = fs::read(directory.join("new").join(file)).ok()?;
            serde_json::from_slice(&json).ok()
        };
        if let (Some(id), Some(estimates)) = (read("benchmark.json"), read("estimates.json")) {
            let text = |key: &str| id[key].as_str().unwrap_or_default().to_owned();
            let median = estimates["median"]["point_estimate"].as_f64();
            medians
                .entry(text("group_id"))
                .or_default()
                .insert(text("function_id"), median.unwrap_or(f64::NAN));
        }
    }
    medians
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
