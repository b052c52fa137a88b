//! What the embedded resolver answers.
