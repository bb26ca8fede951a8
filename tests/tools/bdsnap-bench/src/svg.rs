// SPDX-License-Identifier: GPL-2.0

//! Plots, plain enough for any viewer, on light and on dark ground.

use std::fmt::Write;

const COLOURS: [&str; 8] =
    ["#888888", "#b0b0b0", "#6baed6", "#fdae6b", "#d94801", "#a1793c", "#74c476", "#006d2c"];
const BAR: usize = 9;
const HEIGHT: f64 = 220.0;
const TOP: f64 = 40.0;
const LEFT: usize = 46;

/// Groups of bars, each bar a part of 1; `None` leaves its place empty.
pub(crate) fn bars(title: &str, names: &[&str], groups: &[(String, Vec<Option<f64>>)]) -> String {
    let wide = names.len() * BAR + 2 * BAR;
    let width = (LEFT + groups.len() * wide + 10).max(640);
    let most =
        groups.iter().flat_map(|(_, bars)| bars.iter().flatten()).fold(1.05f64, |a, &b| a.max(b));
    let y = |v: f64| TOP + HEIGHT * (1.0 - v / most);
    let legend = TOP + HEIGHT + 40.0;
    let height = legend + 20.0 * names.len().div_ceil(4) as f64;
    let mut s = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{title}</text>\n"
    );
    for tenth in [0, 2, 4, 6, 8, 10] {
        let (v, right) = (f64::from(tenth) / 10.0, width - 10);
        let _ = writeln!(
            s,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{v:.1}</text>",
            y(v),
            LEFT - 6,
            y(v) + 4.0
        );
    }
    for (g, (name, values)) in groups.iter().enumerate() {
        let x0 = LEFT + g * wide + BAR;
        for (i, value) in values.iter().enumerate() {
            let Some(v) = value.filter(|v| v.is_finite()) else { continue };
            let _ = writeln!(
                s,
                "<rect x=\"{}\" y=\"{:.1}\" width=\"{}\" height=\"{:.1}\" fill=\"{}\"><title>{} {v:.2}</title></rect>",
                x0 + i * BAR,
                y(v),
                BAR - 1,
                HEIGHT * v / most,
                COLOURS[i % COLOURS.len()],
                names.get(i).unwrap_or(&"")
            );
        }
        let _ = writeln!(
            s,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\">{name}</text>",
            x0 + names.len() * BAR / 2,
            TOP + HEIGHT + 16.0
        );
    }
    for (i, name) in names.iter().enumerate() {
        let (x, y) = (LEFT + (i % 4) * 150, legend + 20.0 * (i / 4) as f64);
        let _ = writeln!(
            s,
            "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"{y}\">{name}</text>",
            y - 9.0,
            COLOURS[i % COLOURS.len()],
            x + 15
        );
    }
    s.push_str("</svg>\n");
    s
}
