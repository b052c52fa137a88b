//! The docker CLI against skep, and against dockerd.
