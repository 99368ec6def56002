//! A plan as one HTML page that needs nothing else: no script, no link, nothing that is loaded. Names of a hostile image are text in
//! it, whatever is in them.

use std::borrow::Cow;
use std::io::{self, Write};

use super::{manifest, path, text};
use crate::plan::Reason;
use crate::relink::{Prepared, WOF, is_wof};

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>unimage plan</title>
<style>
body { font: 15px/1.4 sans-serif; margin: 2em; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: 0.1em 0.8em; border-bottom: 1px solid #ddd; vertical-align: top; }
th { position: sticky; top: 0; background: #fff; }
td.n { text-align: right; white-space: nowrap; }
td.p { font-family: monospace; overflow-wrap: anywhere; }
tr.copy { background: #fff8e0; }
tr.skip { background: #ffe4e0; }
</style>
</head>
<body>
"#;

/// A row of the page.
pub struct PlanRow<'p> {
    /// The verdict's word.
    pub verdict: &'static str,
    /// Why.
    pub reason: Cow<'p, str>,
    /// Bytes.
    pub size: u64,
    /// Where it is in the guest.
    pub path: Vec<u8>,
    /// Where it will be; empty for nowhere.
    pub written: Vec<u8>,
}

/// The rows of a relink's plan.
pub fn rows(prepared: &Prepared) -> impl Iterator<Item = PlanRow<'_>> {
    prepared.plan.rows.iter().filter_map(|row| {
        let guest = prepared.guests.get(row.volume)?;
        let reason = match row.reason {
            Some(_) if is_wof(&guest.tree, row) => format!("unreadable: {WOF}").into(),
            reason => reason.map_or("", Reason::word).into(),
        };
        Some(PlanRow {
            verdict: row.verdict.word(),
            reason,
            size: row.stream.map_or(0, |s| guest.tree.stream(s).size),
            path: manifest::path_of(guest, row),
            written: row.written.map(|at| prepared.plan.written_path(at)).unwrap_or_default(),
        })
    })
}

/// Writes the page: what the plan says in a few lines, and a table with a row for every file, folder and stream.
///
/// # Errors
/// What writing meets.
pub fn plan<'p>(out: &mut impl Write, summary: &[u8], rows: impl Iterator<Item = PlanRow<'p>>) -> io::Result<()> {
    out.write_all(HEAD.as_bytes())?;
    writeln!(out, "<h1>Plan</h1>\n<pre>{}</pre>", escape(&String::from_utf8_lossy(summary)))?;
    out.write_all(b"<table>\n<tr><th>verdict<th>reason<th>bytes<th>path<th>written as</tr>\n")?;
    for PlanRow { verdict, reason, size, path, written } in rows {
        let name = |raw: &[u8]| escape(&path::escape(raw));
        writeln!(
            out,
            "<tr class=\"{verdict}\"><td>{verdict}<td>{}<td class=\"n\">{}<td class=\"p\"><bdi>{}</bdi><td class=\"p\"><bdi>{}</bdi></tr>",
            escape(&reason),
            text::count(size),
            name(&path),
            name(&written),
        )?;
    }
    out.write_all(b"</table>\n</body>\n</html>\n")
}

/// Text that stays text between tags and in quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_of_a_name_is_markup() {
        let hostile = "<script>alert('x')</script>&amp;\"\u{1b}[31m";
        let text = escape(hostile);
        assert!(!text.contains(['<', '>', '"', '\'', '\u{1b}']));
        assert_eq!(text.matches('&').count(), 8);
        assert_eq!(escape("größe 🦀"), "größe 🦀");
    }
}
