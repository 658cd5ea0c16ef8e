//! An SVG chart: axes with ticks, and lines, dots and bars placed by value. The page's style sheet has the colours.

use super::escape;

/// The position and size of the plot inside the SVG, in its units.
const LEFT: f64 = 60.0;
const TOP: f64 = 10.0;
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 230.0;
/// Points of a line that are nearer to each other than this are merged.
const RESOLUTION: f64 = 0.4;

/// One axis. Values run from 0 to 1; the ticks label them.
pub(super) struct Axis<'a> {
    pub(super) label: &'a str,
    /// Value and label.
    pub(super) ticks: Vec<(f64, String)>,
}

impl<'a> Axis<'a> {
    /// An axis from 0 to 1 with a tick every 0.2.
    pub(super) fn unit(label: &'a str) -> Self {
        let ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0].map(|tick| (tick, format!("{tick}")));
        Self { label, ticks: ticks.to_vec() }
    }
}

pub(super) struct Chart {
    title: String,
    body: String,
}

impl Chart {
    pub(super) fn new(title: &str, x: &Axis<'_>, y: &Axis<'_>) -> Self {
        let mut body = String::new();
        let (bottom, right) = (TOP + HEIGHT, LEFT + WIDTH);
        for (value, words) in &x.ticks {
            let at = LEFT + value * WIDTH;
            body += &format!(
                r#"<path class="grid" d="M{at:.1} {TOP}V{bottom}"/><text x="{at:.1}" y="{}" text-anchor="middle">{}</text>
"#,
                bottom + 15.0,
                escape(words)
            );
        }
        for (value, words) in &y.ticks {
            let at = bottom - value * HEIGHT;
            body += &format!(
                r#"<path class="grid" d="M{LEFT} {at:.1}H{right}"/><text x="{}" y="{:.1}" text-anchor="end">{}</text>
"#,
                LEFT - 6.0,
                at + 4.0,
                escape(words)
            );
        }
        body += &format!(
            r#"<text class="label" x="{}" y="{}" text-anchor="middle">{}</text><text class="label" transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>
"#,
            LEFT + WIDTH / 2.0,
            bottom + 34.0,
            escape(x.label),
            TOP + HEIGHT / 2.0,
            escape(y.label),
        );
        Self { title: title.to_owned(), body }
    }

    pub(super) fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let mut path = String::new();
        let mut last: Option<(f64, f64)> = None;
        for (i, point) in points.iter().enumerate() {
            let (x, y) = to_svg(*point);
            let far = last.is_none_or(|(a, b)| (x - a).abs() + (y - b).abs() >= RESOLUTION);
            // The last point is always drawn, so that the line has its end.
            if far || i + 1 == points.len() {
                path += &format!("{}{x:.1} {y:.1}", if last.is_none() { 'M' } else { 'L' });
                last = Some((x, y));
            }
        }
        self.body += &format!("<path class=\"line {class}\" d=\"{path}\"/>\n");
    }

    /// A dot with a tooltip.
    pub(super) fn dot(&mut self, class: &str, point: (f64, f64), radius: f64, words: &str) {
        let (x, y) = to_svg(point);
        self.body += &format!(
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\"><title>{}</title></circle>\n",
            escape(words)
        );
    }

    /// A bar between two values on the x axis, with a tooltip.
    pub(super) fn bar(&mut self, class: &str, (from, to): (f64, f64), height: f64, words: &str) {
        let ((left, top), (right, bottom)) = (to_svg((from, height)), to_svg((to, 0.0)));
        self.body += &format!(
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>\n",
            right - left,
            bottom - top,
            escape(words)
        );
    }

    /// The figure with its caption; the caption is HTML.
    pub(super) fn finish(self, caption: &str) -> String {
        let (width, height) = (LEFT + WIDTH + 14.0, TOP + HEIGHT + 42.0);
        let title = escape(&self.title);
        format!(
            "<figure>\n<h3>{title}</h3>\n<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n{}</svg>\n<figcaption>{caption}</figcaption>\n</figure>\n",
            self.body
        )
    }
}

/// Converts values from 0 to 1 to the SVG's units.
fn to_svg((x, y): (f64, f64)) -> (f64, f64) {
    (LEFT + x * WIDTH, TOP + (1.0 - y) * HEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_many_points_keeps_its_ends_and_its_size_is_bounded() {
        let mut chart = Chart::new("t", &Axis::unit("x"), &Axis::unit("y"));
        let before = chart.body.len();
        let points: Vec<_> = (0..=100_000u32).map(|i| f64::from(i) / 100_000.0).map(|v| (v, v)).collect();
        chart.line("c", &points);
        let line = &chart.body[before..];
        assert!(line.contains("M60.0 240.0L") && line.contains("L360.0 10.0\""));
        assert!(line.len() < 25_000, "{}", line.len());
    }
}
