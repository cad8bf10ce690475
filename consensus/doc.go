// Package consensus is where the replicas of one update phase come to hold the
// same block: the messages they exchange on the way there, as pure values with
// one encoding each, and Agree, which runs the agreement engine for one block.
//
// It knows bytes, keys and peers; it knows nothing of names, trees or trusted
// devices. What it gives is liveness: all correct replicas decide, and decide
// the same. Safety does not rest on it but on the attestations that certify an
// epoch, which the caller collects and checks (see DESIGN.md).
package consensus
