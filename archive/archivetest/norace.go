//go:build !race

package archivetest

// RaceDetector is whether this test binary carries the race detector.
const RaceDetector = false
