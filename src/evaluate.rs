//! How accurate detectors are on labelled images.
//!
//! `dataset`, `images` and `columns` read labelled images, `screening` has them scored and gathers `results`; `metrics`,
//! `slices`, `summary` and `report` turn scores into figures and a page. Only `screening` names the screen. The question for every
//! detector is its policy's: does the image have the *positive* label, which the rule names, or any other?

pub(crate) mod columns;
pub(crate) mod dataset;
pub(crate) mod images;
pub(crate) mod metrics;
pub(crate) mod report;
pub(crate) mod results;
pub(crate) mod screening;
pub(crate) mod slices;
pub(crate) mod subject;
pub(crate) mod summary;
