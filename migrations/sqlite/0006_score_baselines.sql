-- Distributions of a detector's scores that later ones are compared with. They describe no single image.
CREATE TABLE score_baselines (
    digest   text NOT NULL,                       -- the detector's, as in verdicts.detectors
    label    text NOT NULL,
    counts   text NOT NULL,                       -- scores by class, as JSON
    first_at text NOT NULL,                       -- when the first and the last of their verdicts were decided
    last_at  text NOT NULL,
    PRIMARY KEY (digest, label)
);
