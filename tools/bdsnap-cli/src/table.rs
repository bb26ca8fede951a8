// SPDX-License-Identifier: GPL-2.0

//! Tables for people: no borders, columns two spaces apart. On a terminal the
//! last column is wrapped where there is no room for it, and where that is not
//! enough columns are left out that can be.

use std::io::IsTerminal;

use comfy_table::{presets, CellAlignment, ColumnConstraint, ContentArrangement};
pub use comfy_table::{Cell, Color, Table};

/// The last column is not made narrower than this, if it needs as much.
const LAST_MIN: u16 = 24;

/// A table with these headings.
pub fn new(headings: &[&str], colored: bool) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(headings.iter().map(Cell::new));
    if colored {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

/// Columns of the terminal on standard output, if it is one.
pub fn terminal_width() -> Option<u16> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(&out).ok().map(|w| w.ws_col).filter(|w| *w > 0)
}

/// The finished text for standard output: aligned, without blanks at the ends
/// of lines.
pub fn finish(table: Table, right: &[usize]) -> String {
    fit(table, right, &[], terminal_width())
}

/// As [`finish`], for so many columns of a terminal; where they are too few,
/// the table's columns `spare` are left out one after the other.
pub fn fit(mut table: Table, right: &[usize], spare: &[usize], width: Option<u16>) -> String {
    let last = table.column_count().saturating_sub(1);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if let Some(width) = width {
        let widths = table.column_max_content_widths();
        let last_min = widths.get(last).map_or(LAST_MIN, |w| LAST_MIN.min(*w));
        let mut others: u16 = widths[..last].iter().map(|w| w + 2).sum();
        for &index in spare.iter().filter(|i| **i < last) {
            if width.saturating_sub(others) >= last_min {
                break;
            }
            others -= widths[index] + 2;
            if let Some(column) = table.column_mut(index) {
                column.set_constraint(ColumnConstraint::Hidden);
            }
        }
        if width.saturating_sub(others) >= last_min {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
            if let Some(column) = table.column_mut(last) {
                column.set_padding((0, 0));
                column.remove_constraint();
            }
        }
    }
    let mut text: String = table.lines().map(|l| l.trim_end().to_owned() + "\n").collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_is_wrapped_and_no_other() {
        let table = || {
            let mut t = new(&["NAME", "SIZE", "WHY"], false);
            t.add_row([
                "a-long-name-of-a-session",
                "1",
                "one two three four five six seven eight nine",
            ]);
            t
        };
        let wide = fit(table(), &[1], &[], None);
        assert_eq!(wide.lines().count(), 2);
        let narrow = fit(table(), &[1], &[], Some(64));
        assert_eq!(narrow.lines().count(), 3, "{narrow}");
        assert!(narrow.lines().all(|l| l.chars().count() <= 64), "{narrow}");
        assert!(narrow.contains("a-long-name-of-a-session"));
        // No room at all: the terminal wraps, nothing is lost.
        assert_eq!(fit(table(), &[1], &[], Some(30)), wide);
        // What can be left out is, as little as possible.
        let spared = fit(table(), &[1], &[1, 0], Some(51));
        assert!(spared.starts_with("NAME") && !spared.contains("SIZE"), "{spared}");
        assert!(spared.lines().all(|l| l.chars().count() <= 51), "{spared}");
        assert_eq!(fit(table(), &[1], &[1, 0], Some(200)), wide);
    }
}
