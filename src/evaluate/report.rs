//! One self-contained HTML page: figures, curves as inline SVG, the worst mistakes as pictures.
//!
//! Names and reasons are untrusted, so every text goes through `escape`. If one were forgotten, the page's content security
//! policy would still forbid scripts and external resources.

mod chart;
mod curves;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::metrics::{CALIBRATION_BINS, ThresholdFigures, wilson_interval};
use super::results::{EvaluationResults, Mistake, UnscoredImages};
use super::slices::{PropertyFigures, Slice, property_figures};
use super::summary::{DatasetSummary, Summary, ThresholdRole};
use crate::job::exact;

const STYLE: &str = include_str!("report/page.css");

/// What the page's header shows.
#[derive(Debug, Clone, Copy)]
pub struct ReportInfo {
    pub made_at: OffsetDateTime,
    /// Pixwarden's version.
    pub version: &'static str,
}

#[must_use]
pub fn page(summaries: &[Summary<'_>], results: &EvaluationResults, info: &ReportInfo) -> String {
    let made_at = info.made_at.replace_nanosecond(0).unwrap_or(info.made_at).format(&Rfc3339).unwrap_or_default();
    let sections: String = summaries.iter().enumerate().map(|(i, summary)| section(summary, i, results)).collect();
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Detector evaluation</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>Detector evaluation</h1>
<p>Made by Pixwarden {version} at {made_at}. A score is an indication, not proof.</p>
</header>
{sections}{unscored}{definitions}
</body>
</html>
"#,
        version = escape(info.version),
        unscored = unscored(results),
        definitions = definitions(),
    )
}

/// A file as a `data:` URI (RFC 2397).
#[must_use]
pub fn data_uri(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

/// Escapes text for an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn section(summary: &Summary<'_>, index: usize, results: &EvaluationResults) -> String {
    let subject = summary.subject;
    let overall = summary.overall();
    let tile = |name: &str, value: String| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n");
    let tiles = [
        tile("images", grouped(overall.images.images())),
        tile("accuracy", fraction(overall.accuracy())),
        tile("ROC AUC", fraction(summary.curve.roc_auc())),
        tile("average precision", fraction(summary.curve.average_precision())),
        tile("calibration error", fraction(summary.calibration.expected_error())),
    ];
    format!(
        r#"<section>
<h2>{detector} <small>“{positive}” against any other label</small></h2>
<dl class="tiles">
{tiles}</dl>
{datasets}
<div class="charts">
{charts}</div>
{thresholds}
{slices}{mistakes}</section>
"#,
        detector = escape(&subject.detector),
        positive = escape(&subject.positive),
        tiles = tiles.concat(),
        datasets = datasets(summary),
        charts = curves::all(summary),
        thresholds = thresholds(summary),
        slices = slices(summary),
        mistakes = mistakes(summary, index, results),
    )
}

fn datasets(summary: &Summary<'_>) -> String {
    let row = |row: &DatasetSummary<'_>| {
        let accuracy = row.accuracy();
        format!(
            r#"<tr><th scope="row">{}</th><td>{}</td><td>{}</td><td>{}</td><td class="bar" style="--part:{:.4}">{}</td><td>{}</td></tr>
"#,
            escape(row.name),
            grouped(row.images.images()),
            grouped(row.images.positives),
            grouped(row.correct),
            accuracy.unwrap_or_default(),
            fraction(accuracy),
            grouped(row.unscored),
        )
    };
    let mut rows: String = summary.datasets.iter().map(row).collect();
    if summary.datasets.len() > 1 {
        rows += &row(&summary.overall()).replacen("<tr>", r#"<tr class="sum">"#, 1);
    }
    format!(
        r#"<table>
<thead><tr><th scope="col">dataset</th><th>images</th><th>of them “{}”</th><th>correct</th><th>accuracy</th><th>not scored</th></tr></thead>
<tbody>
{rows}</tbody>
</table>"#,
        escape(&summary.subject.positive)
    )
}

fn thresholds(summary: &Summary<'_>) -> String {
    let row = |(threshold, roles): &(ThresholdFigures, Vec<ThresholdRole>)| {
        let notes = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
        let class = if roles.is_empty() { "" } else { r#" class="marked""# };
        format!(
            r#"<tr{class}><th scope="row">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class="note">{notes}</td></tr>
"#,
            threshold.at,
            grouped(threshold.reached.images()),
            fraction(threshold.precision),
            fraction(threshold.recall),
            fraction(threshold.false_positive_rate),
        )
    };
    let rows: String = summary.thresholds.iter().map(row).collect();
    format!(
        r#"<h3>Thresholds</h3>
<div class="beside">
<table>
<thead><tr><th scope="col">from</th><th>images</th><th>precision</th><th>recall</th><th>false-positive rate</th><th></th></tr></thead>
<tbody>
{rows}</tbody>
</table>
<aside>{}</aside>
</div>"#,
        recommendation(summary)
    )
}

fn slices(summary: &Summary<'_>) -> String {
    if summary.slices.is_empty() {
        return String::new();
    }
    let row = |slice: &Slice| {
        let (images, accuracy) = (slice.images(), slice.accuracy());
        let (low, high) = slice.accuracy_interval().unwrap_or_default();
        format!(
            r#"<tr><th scope="row">{} {}</th><td>{}</td><td>{}</td><td class="bar" style="--part:{:.4}">{}</td><td>{low:.4}–{high:.4}</td><td>{}</td></tr>
"#,
            slice.property.as_str(),
            escape(&slice.name),
            grouped(images.images()),
            grouped(images.positives),
            accuracy.unwrap_or_default(),
            fraction(accuracy),
            fraction(slice.curve.roc_auc()),
        )
    };
    let property = |figures: PropertyFigures| {
        format!(
            "<li>{}: ROC AUC of the {0} alone {}, of the detector among images that share it {}</li>\n",
            figures.property.as_str(),
            fraction(figures.roc_auc_of_property),
            fraction(figures.roc_auc_within),
        )
    };
    format!(
        r#"<h3>By format, size, compression and dataset</h3>
<table>
<thead><tr><th scope="col">images</th><th>number</th><th>of them “{}”</th><th>accuracy</th><th>95&nbsp;%</th><th>ROC AUC</th></tr></thead>
<tbody>
{}</tbody>
</table>
<ul>
{}</ul>
"#,
        escape(&summary.subject.positive),
        summary.slices.iter().map(row).collect::<String>(),
        property_figures(&summary.slices).into_iter().map(property).collect::<String>(),
    )
}

fn recommendation(summary: &Summary<'_>) -> String {
    let paragraph = |words: String| format!("<p class=\"caution\">{}</p>\n", escape(&words));
    let caution: String = summary.cautions().into_iter().map(paragraph).collect();
    let (Some(review_at), Some(flag_at)) = (summary.review_at, summary.flag_at) else { return caution };
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let rule = format!(
        "[[policy.rules]]\ndetector = {}\nlabel = {}\nreview_at = {}\nflag_at = {}",
        quoted(&summary.subject.detector),
        quoted(&summary.subject.positive),
        exact(review_at),
        exact(flag_at),
    );
    let negatives = summary.curve.total().negatives;
    let between = |at: f32| wilson_interval(summary.curve.at(at).negatives, negatives).unwrap_or_default();
    let rate = |name: &str, at: f32, target: f64| {
        let (low, high) = between(at);
        format!(
            "<li><code>{name}</code> for a false-positive rate of {target}; on images like these the rate is between {low:.4} and {high:.4} with 95&nbsp;% confidence</li>\n"
        )
    };
    format!(
        "{caution}<p>The lowest thresholds that keep these rates:</p>\n<pre>{}</pre>\n<ul>\n{}{}</ul>\n<p>They were chosen on these images: expect slightly more false alarms on others.</p>\n",
        escape(&rule),
        rate("review_at", review_at, summary.target_rates.review),
        rate("flag_at", flag_at, summary.target_rates.flag),
    )
}

fn mistakes(summary: &Summary<'_>, index: usize, results: &EvaluationResults) -> String {
    let figure = |mistake: &Mistake| {
        let picture = mistake.picture.as_deref().map(|uri| format!(r#"<img src="{}" alt="">"#, escape(uri)));
        let name = escape(&mistake.image);
        format!(
            "<figure>{}<figcaption><b>{:.4}</b> {} <span title=\"{name}\"><bdi>{name}</bdi></span></figcaption></figure>\n",
            picture.unwrap_or_default(),
            mistake.score,
            escape(&results.datasets[mistake.dataset]),
        )
    };
    let gallery = |title: &str, list: &[Mistake]| {
        let figures: String = list.iter().map(figure).collect();
        if list.is_empty() {
            String::new()
        } else {
            format!("<h3>{title}</h3>\n<div class=\"gallery\">\n{figures}</div>\n")
        }
    };
    let positive = escape(&summary.subject.positive);
    let worst = &results.worst[index];
    gallery(&format!("The worst false alarms: not “{positive}”, highest score"), &worst.false_alarms)
        + &gallery(&format!("The worst misses: “{positive}”, lowest score"), &worst.missed)
}

fn unscored(results: &EvaluationResults) -> String {
    if results.unscored.is_empty() {
        return String::new();
    }
    let row = |found: &UnscoredImages| {
        format!(
            "<tr><th scope=\"row\">{}</th><td class=\"note\">{}</td><td class=\"note\">{}</td></tr>\n",
            escape(&results.datasets[found.dataset]),
            escape(&found.image),
            escape(&found.reason),
        )
    };
    let images = results.unscored.iter().map(|found| found.images).sum();
    format!(
        r#"<section>
<h2>Not scored <small>{} not counted above</small></h2>
<table>
<thead><tr><th scope="col">dataset</th><th class="note">image</th><th class="note">reason</th></tr></thead>
<tbody>
{}</tbody>
</table>
</section>
"#,
        if images == 1 { "1 image".into() } else { format!("{} images", grouped(images)) },
        results.unscored.iter().map(row).collect::<String>(),
    )
}

fn definitions() -> String {
    format!(
        r"<footer>
<h2>What the figures mean</h2>
<p><b>Positive</b> images have the label that is looked for; the score is the probability that the detector gives to this label. <b>Accuracy</b> is the share of correctly classified images: positive ones with a score of at least 0.5, and others with less. <b>Precision</b> is the share of positive images among those that reach a threshold, <b>recall</b> the share of the positive images that reach it, and the <b>false-positive rate</b> the share of the others that reach it.</p>
<p><b>ROC AUC</b> is the probability that a positive image has a higher score than a negative one; ties count half. <b>Average precision</b> sums precision over the gains in recall, from the highest score down, without interpolation. The <b>expected calibration error</b> is the mean distance between score and share of positive images over {CALIBRATION_BINS} bins of equal width, weighted by the images in each bin.</p>
<p>Precision, average precision and calibration depend on the share of positive images, which is usually far lower in production than in a test set. Pictures show the first frame as the detector received it. Of an animation, the frame with the highest score counts.</p>
</footer>"
    )
}

/// Four decimals, such as `0.9707`; a dash where there is no value.
fn fraction(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.4}"))
}

/// Groups the digits: `9,977`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::summary::tests::{TARGET_RATES, results};

    fn made() -> String {
        let results = results();
        let info = ReportInfo { made_at: OffsetDateTime::UNIX_EPOCH, version: "1.2.3" };
        page(&[Summary::new(&results, 0, TARGET_RATES).with_slices(&results, 0)], &results, &info)
    }

    #[test]
    fn untrusted_text_is_never_markup() {
        let page = made();
        for shown in
            ["photos/&lt;script&gt;alert(1)&lt;/script&gt;.jpg", "faces &lt;b&gt;", "&lt;i&gt;cut short&lt;/i&gt;"]
        {
            assert!(page.contains(shown), "{shown} is not on the page");
        }
        for markup in ["<script", "faces <b>", "<i>"] {
            assert!(!page.contains(markup), "{markup} is on the page");
        }
        assert_eq!(escape(r#"<a b="c" d='&'>"#), "&lt;a b=&quot;c&quot; d=&#39;&amp;&#39;&gt;");
    }

    #[test]
    fn the_page_has_the_groups_of_images() {
        let page = made();
        assert!(page.contains(r#"<th scope="row">format jpeg</th><td>200</td><td>0</td>"#), "{page}");
        assert!(page.contains("<li>format: ROC AUC of the format alone 1.0000,"), "{page}");
    }

    #[test]
    fn the_page_needs_no_other_file() {
        let page = made();
        for outside in ["http:", "https:", "url(", "<link", "@import", "//"] {
            assert!(!page.contains(outside), "{outside} is on the page");
        }
        assert!(page.contains(r#"<img src="data:image/png;base64,AAAA""#));
    }

    #[test]
    fn the_page_is_well_formed() {
        // Every element is closed by its own end tag, except for HTML's empty elements.
        let page = made();
        let mut open: Vec<&str> = Vec::new();
        for tag in page.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
            let name = tag.split_whitespace().next().unwrap().trim_end_matches('/');
            if let Some(closed) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(closed));
            } else if !tag.ends_with('/') && !["!doctype", "meta", "img"].contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_data_uri_has_the_bytes_in_base64() {
        assert_eq!(data_uri("image/png", &[0xFF, 0xEF]), "data:image/png;base64,/+8=");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
