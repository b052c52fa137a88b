//! Files in and out of a container (archive, diff, export, commit). Owner: the image area.
