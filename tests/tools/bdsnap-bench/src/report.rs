// SPDX-License-Identifier: GPL-2.0

//! Medians, spread and tables.

use crate::svg;
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The contenders in the order of the tables, with what they are called there.
pub(crate) const CONTENDERS: [(&str, &str); 8] = [
    ("plain", "plain"),
    ("linear", "dm-linear"),
    ("hooks", "bdsnap, not registered"),
    ("snapshot-n", "dm-snapshot N"),
    ("snapshot-p", "dm-snapshot P"),
    ("thin", "dm-thin"),
    ("async", "bdsnap async"),
    ("strict", "bdsnap strict"),
];

/// What one cell was measured for in each of its rounds.
type Rounds = Vec<f64>;

/// (model, workload, touch, metric) to contender to rounds.
type Cells = BTreeMap<(String, String, String, String), BTreeMap<String, Rounds>>;

/// The middle one; between the two middle ones, if they are even in number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Largest deviation from the median, as a part of it.
fn spread(values: &[f64]) -> f64 {
    let m = median(values);
    values.iter().map(|v| (v - m).abs()).fold(0.0, f64::max) / m.abs().max(1e-9)
}

/// Places in `/sys/block/*/stat`.
const READS: usize = 0;
const SECTORS_WRITTEN: usize = 6;
const FLUSHES: usize = 15;

fn text<'a>(line: &'a Value, key: &str) -> Result<&'a str> {
    line[key].as_str().ok_or_else(|| format!("no {key} in {line}").into())
}

/// How far a counter moved.
fn moved(line: &Value, device: &str, place: usize) -> f64 {
    let at = |when: &str| line[format!("{device}{when}")][place].as_f64().unwrap_or(f64::NAN);
    at("1") - at("0")
}

/// The metrics of a run of fio. Sizes and counts are those of all its jobs.
fn fio(report: &Value) -> Option<(Vec<(&'static str, f64)>, f64)> {
    let job = report["jobs"].get(0)?;
    let (w, r) = (&job["write"], &job["read"]);
    let writes = w["total_ios"].as_f64()?;
    let ms = w["runtime"].as_f64()?.max(r["runtime"].as_f64().unwrap_or(0.0)).max(1.0);
    let bytes = w["io_bytes"].as_f64()? + r["io_bytes"].as_f64().unwrap_or(0.0);
    let percentile = |p: &str| w["clat_ns"]["percentile"][p].as_f64().map(|ns| ns / 1000.0);
    Some((
        vec![
            ("mib_s", bytes / 1048.576 / ms),
            ("p50_us", percentile("50.000000")?),
            ("p99_us", percentile("99.000000")?),
            ("p999_us", percentile("99.900000")?),
        ],
        writes,
    ))
}

fn read(dir: &Path) -> Result<Cells> {
    let mut cells = Cells::new();
    let raw = dir.join("raw");
    // There are none if only figures were wanted.
    for line in fs::read_to_string(raw.join("cells.jsonl")).unwrap_or_default().lines() {
        let line: Value = serde_json::from_str(line)?;
        let (model, contender) = (text(&line, "model")?, text(&line, "contender")?);
        let mut add = |workload: &str, touch: &str, metric: &str, value: f64| {
            let key = (model.into(), workload.into(), touch.into(), metric.into());
            cells.entry(key).or_default().entry(contender.into()).or_default().push(value);
        };
        if let Some(figure) = line["figure"].as_str() {
            if let Some(value) = line["value"].as_f64() {
                add("", "", figure, value);
            }
            continue;
        }
        let (workload, touch) = (text(&line, "workload")?, text(&line, "touch")?);
        let name = format!("{model}.{}.{contender}.{workload}.{touch}.json", line["round"]);
        let Ok(report) = fs::read_to_string(raw.join(&name)) else {
            add(workload, touch, "ms", line["ns"].as_f64().unwrap_or(f64::NAN) / 1e6);
            continue;
        };
        // fio may have something to say before the report.
        let report = report.find('{').map_or("", |at| &report[at..]);
        let report: Value = serde_json::from_str(report).map_err(|e| format!("{name}: {e}"))?;
        let (metrics, writes) = fio(&report).ok_or_else(|| format!("{name}: not fio's"))?;
        for (metric, value) in metrics {
            add(workload, touch, metric, value);
        }
        let per_1000 = |n: f64| n * 1000.0 / writes.max(1.0);
        add(workload, touch, "origin_reads_1000", per_1000(moved(&line, "origin", READS)));
        add(workload, touch, "store_flushes_1000", per_1000(moved(&line, "store", FLUSHES)));
        let written = moved(&line, "store", SECTORS_WRITTEN) / 8.0;
        add(workload, touch, "store_4k_writes_1000", per_1000(written));
    }
    Ok(cells)
}

/// A number with three digits that count.
fn short(v: f64) -> String {
    match v.abs() {
        a if !a.is_finite() => "–".into(),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

/// A table of one metric: a row for each workload, a column for each contender.
/// `relative`: to plain.
fn table(cells: &Cells, model: &str, metric: &str, relative: bool) -> String {
    let rows: Vec<_> = cells.iter().filter(|((m, _, _, x), _)| m == model && x == metric).collect();
    let there: Vec<_> = CONTENDERS
        .iter()
        .filter(|(key, _)| rows.iter().any(|(_, by)| by.contains_key(*key)))
        .collect();
    let mut out = String::from("| workload | touch |");
    for (_, name) in &there {
        let _ = write!(out, " {name} |");
    }
    out.push_str("\n|---|---|");
    there.iter().for_each(|_| out.push_str("--:|"));
    out.push('\n');
    for ((_, workload, touch, _), by) in rows {
        let plain = by.get("plain").map_or(f64::NAN, |v| median(v));
        let _ = write!(out, "| {workload} | {touch} |");
        for (key, _) in &there {
            let Some(values) = by.get(*key) else {
                out.push_str(" – |");
                continue;
            };
            let by_what = if relative { plain } else { 1.0 };
            let _ = write!(out, " {} |", short(median(values) / by_what));
        }
        out.push('\n');
    }
    out
}

/// What `figures.sh` has found: name, value, unit.
fn figures(dir: &Path) -> Vec<(String, f64, String)> {
    let text = fs::read_to_string(dir.join("figures")).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?, words.next()?.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn as_json(cells: &Cells, figures: &[(String, f64, String)]) -> Value {
    let mut list = Vec::new();
    for ((model, workload, touch, metric), by) in cells {
        let mut contenders = Map::new();
        for (contender, values) in by {
            contenders.insert(
                contender.clone(),
                json!({ "median": median(values), "spread": spread(values), "rounds": values }),
            );
        }
        list.push(json!({ "model": model, "workload": workload, "touch": touch,
            "metric": metric, "contenders": contenders }));
    }
    let figures: Map<String, Value> = figures
        .iter()
        .map(|(name, value, unit)| (name.clone(), json!({ "value": value, "unit": unit })))
        .collect();
    json!({ "schema_version": 1, "cells": list, "figures": figures })
}

/// Bars of throughput, relative to plain, for one touch.
fn plot(cells: &Cells, model: &str, touch: &str) -> String {
    let mut groups = Vec::new();
    for ((m, workload, t, metric), by) in cells {
        if m != model || t != touch || metric != "mib_s" {
            continue;
        }
        let plain = by.get("plain").map_or(f64::NAN, |v| median(v));
        let bars = CONTENDERS.iter().map(|(key, _)| by.get(*key).map(|v| median(v) / plain));
        groups.push((workload.clone(), bars.collect()));
    }
    let names: Vec<_> = CONTENDERS.iter().map(|(_, name)| *name).collect();
    svg::bars(&format!("Throughput relative to plain, {touch} touch"), &names, &groups)
}

/// See the module.
pub(crate) fn report(dir: &Path) -> Result<()> {
    let cells = read(dir)?;
    let figures = figures(dir);
    let json = serde_json::to_string_pretty(&as_json(&cells, &figures))?;
    fs::write(dir.join("bench.json"), json + "\n")?;
    let models: BTreeSet<&String> = cells.keys().map(|(m, ..)| m).collect();
    let mut tables = String::new();
    for model in models {
        for (metric, relative, title) in [
            ("mib_s", true, "throughput, relative to plain"),
            ("ms", true, "time, relative to plain"),
            ("p50_us", true, "half of all writes take at most, relative to plain"),
            ("p99_us", true, "99 % of all writes take at most, relative to plain"),
            ("p999_us", true, "99.9 % of all writes take at most, relative to plain"),
            ("origin_reads_1000", false, "reads of the origin per 1000 writes"),
            ("store_flushes_1000", false, "flushes of the store's disk per 1000 writes"),
            ("store_4k_writes_1000", false, "4 KiB written to the store's disk per 1000 writes"),
        ] {
            let _ = writeln!(
                tables,
                "**{model}: {title}**\n\n{}",
                table(&cells, model, metric, relative)
            );
        }
        let mut figures = BTreeMap::<&str, Vec<String>>::new();
        let mut widest: f64 = 0.0;
        for ((m, _, _, metric), by) in &cells {
            if m != model {
                continue;
            }
            if metric == "mib_s" {
                widest = by.values().map(|v| spread(v)).fold(widest, f64::max);
            }
        }
        for ((m, workload, _, metric), by) in &cells {
            if m == model && workload.is_empty() {
                for (contender, values) in by {
                    let said = format!("{contender} {}", short(median(values)));
                    figures.entry(metric).or_default().push(said);
                }
            }
        }
        for (metric, said) in figures {
            let _ = writeln!(tables, "* {metric}: {}", said.join(", "));
        }
        let _ = writeln!(
            tables,
            "* largest deviation of a round from its median: {:.1} %\n",
            widest * 100.0
        );
        for touch in ["first", "second"] {
            fs::write(dir.join(format!("{model}-{touch}.svg")), plot(&cells, model, touch))?;
        }
    }
    if !figures.is_empty() {
        tables.push_str("| figure | value | unit |\n|---|--:|---|\n");
    }
    for (name, value, unit) in &figures {
        let _ = writeln!(tables, "| {name} | {value} | {unit} |");
    }
    fs::write(dir.join("tables.md"), tables)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(spread(&[8.0, 10.0, 11.0]), 0.2);
    }

    #[test]
    fn from_raw_to_tables() {
        let dir = std::env::temp_dir().join(format!("bdsnap-bench-{}", std::process::id()));
        fs::create_dir_all(dir.join("raw")).unwrap();
        let mut lines = String::new();
        for (contender, ms) in [("plain", 100), ("strict", 200)] {
            let stat = |reads: u64, flushes: u64| {
                let mut s = vec![0; 17];
                (s[READS], s[FLUSHES]) = (reads, flushes);
                s
            };
            let line = json!({ "model": "m", "round": 1, "contender": contender, "workload": "w",
                "touch": "first", "ns": 1, "origin0": stat(5, 0), "origin1": stat(55, 0),
                "store0": stat(0, 1), "store1": stat(0, 3) });
            let _ = writeln!(lines, "{line}");
            let latency = json!({ "50.000000": 1e3, "99.000000": 2e3, "99.900000": 3e3 });
            let job = json!({ "write": { "total_ios": 100, "runtime": ms, "io_bytes": 1 << 20,
                "clat_ns": { "percentile": latency } }, "read": {} });
            let report = format!("note: hello\n{}", json!({ "jobs": [job] }));
            fs::write(dir.join(format!("raw/m.1.{contender}.w.first.json")), report).unwrap();
        }
        fs::write(dir.join("raw/cells.jsonl"), lines).unwrap();
        report(&dir).unwrap();
        let tables = fs::read_to_string(dir.join("tables.md")).unwrap();
        assert!(tables.contains("| w | first | 1.00 | 0.50 |"), "{tables}");
        assert!(tables.contains("| w | first | 500 | 500 |"), "{tables}");
        assert!(tables.contains("| w | first | 20.0 | 20.0 |"), "{tables}");
        assert!(fs::read_to_string(dir.join("m-first.svg")).unwrap().ends_with("</svg>\n"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
