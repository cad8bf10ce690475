package main

// The figures of the Bonafide talk (FAST '09, slide "Performance evaluation"), mean
// (standard deviation), as printed there: of Get and Add in milliseconds, of all else
// in seconds.
const (
	talkGet       = "3.1 (0.24)"
	talkAdd       = "1.0 (0.21)"
	talkReboot    = "86.6 (2.1)"
	talkProposal  = "8.0 (4.0)"
	talkAgreement = "5.2 (1.0)"
	talkUpdate    = "271.1 (24.8)"
	talkTotal     = "370.9 (24.0)"
)

// talkRepair is audit and repair, by percent of data lost.
var talkRepair = map[int]string{0: "554.5 (54.6)", 1: "612.9 (30.3)", 10: "1147.6 (33.3)", 100: "3521.5 (201.6)"}

// Means of the talk to compute with, in seconds.
const talkPhase, talkBoot = 370.9, 86.6

// talkPeriods are the periods of update phases in hours, of the slide "Availability".
var talkPeriods = []int{9, 6, 3}
