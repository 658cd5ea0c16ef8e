//! How well detectors do on labelled images: `pixwarden evaluate` without the screening.
//!
//! Nothing in here knows a model, a store or a decoder: labelled scores come in, figures and a page come out. For every
//! detector the question is the one its policy asks: is this image of the *positive* class, the label the rule names,
//! or of any other?

pub mod columns;
pub mod dataset;
pub mod findings;
pub mod metrics;
pub mod report;
pub mod subject;
pub mod summary;
