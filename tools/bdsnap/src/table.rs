// SPDX-License-Identifier: GPL-2.0

//! Tables for people: no borders, columns two spaces apart.

use comfy_table::{presets, Cell, CellAlignment, ColumnConstraint, Table};

/// A table with these headings.
pub(crate) fn new(headings: &[&str], colored: bool) -> Table {
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

/// The finished text: aligned, without blanks at the ends of lines.
pub(crate) fn finish(mut table: Table, right: &[usize]) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text: String = table.lines().map(|l| l.trim_end().to_owned() + "\n").collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}
