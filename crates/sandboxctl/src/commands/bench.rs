//! `bench`: what has a target, measured on this host.

use benchmarks::rows::{ALL, Row};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::cli::BenchArgs;
use crate::output::table::columns;
use crate::output::{Code, Failure, data, json as print_json};

/// What `bench --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct Bench {
    /// The version of this document: 1.
    v: u32,
    rows: Vec<Row>,
    /// Load averages of the last 1, 5 and 15 minutes.
    load: String,
}

/// Serves the verb.
pub(crate) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let wished = |name: &str| args.names.is_empty() || args.names.iter().any(|wish| wish == name);
    let mut rows = Vec::new();
    for measurement in ALL.iter().filter(|one| wished(one.name)) {
        eprintln!("{}: {}", measurement.name, measurement.about);
        let measured = (measurement.run)();
        rows.extend(measured.unwrap_or_else(|why| vec![Row::failed(measurement, why)]));
    }
    if args.json.json {
        print_json(&json!(Bench { v: 1, rows: rows.clone(), load: load_average() }));
    } else {
        data(&render(&rows));
    }
    let missed = rows.iter().filter(|row| !row.is_reached()).count();
    if missed == 0 {
        return Ok(());
    }
    let what = format!("{missed} of {} targets were not reached", rows.len());
    let why = format!("see the table; the load average is {}", load_average());
    Err(Failure::early(Code::BENCH, what, why, "sandboxctl help E0701").documented())
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn render(rows: &[Row]) -> String {
    let header = ["", "MEASURED", "VALUE", "TARGET", "DETAIL"].map(str::to_owned).to_vec();
    let line = |row: &Row| {
        vec![
            if row.is_reached() { "ok" } else { "MISSED" }.to_owned(),
            row.what.clone(),
            format!("{} {}", row.shown(), row.unit).trim_end().to_owned(),
            row.target.map(|target| target.to_string()).unwrap_or_default(),
            row.detail.clone(),
        ]
    };
    columns(&[header].into_iter().chain(rows.iter().map(line)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<Bench>("bench.v1.json");
    }
}
