package archive_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/trust"
)

// Attestations that devices of the roster, or others like them, have really
// made, shown as the word of replica 2 for the newest head. Each is refused for a
// reason of its own.
func TestHeadRefusals(t *testing.T) {
	w := world()
	rec := w.Newest().Record
	service := w.ServiceStatement(rec, 2)
	but := func(change func(st *trust.Statement)) trust.Attestation {
		st := service
		change(&st)
		return w.Attest(2, testNonce, st)
	}
	cluster := forge.New(forge.Options{Seed: "another cluster"})
	for _, c := range []struct {
		name string
		att  trust.Attestation
		why  string
	}{
		{"replayed", w.Attest(2, trust.Nonce{1}, service), "another nonce"},
		{"of another cluster's device", cluster.Attest(2, testNonce, service), "wrong signature"},
		{"of the device for another cluster", but(func(st *trust.Statement) { st.Slots.Archive = cluster.Roster.ID() }), "attested for another archive"},
		{"of another replica", w.Attest(3, testNonce, w.ServiceStatement(rec, 3)), "wrong signature"},
		{"of another epoch", w.Attest(2, testNonce, w.ServiceStatement(w.Ago(1).Record, 2)), "attests another head"},
		{"of another epoch, by its number", but(func(st *trust.Statement) { st.Slots.Epoch-- }), "attests another head"},
		{"of another epoch, by the counter", but(func(st *trust.Statement) { st.Counter++ }), "attests another head"},
		{"in update mode", but(func(st *trust.Statement) { st.Mode = trust.ModeUpdate }), "attested in update mode"},
		{"a vote", w.Commit(rec, 1, 2), "another nonce"},
		{"re-marshalled with a byte more", append(w.Attest(2, testNonce, service), 0), "trailing bytes"},
	} {
		_, err := archive.VerifyHead(w.Roster, rec, archive.Attested{Replica: 2, Attestation: c.att}, testNonce)
		if !errors.Is(err, archive.ErrIntegrity) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: got %v, want ...%s", c.name, err, c.why)
		}
	}
	if _, err := archive.VerifyHead(w.Roster, rec, archive.Attested{Replica: 2, Attestation: but(func(*trust.Statement) {})}, testNonce); err != nil {
		t.Error(err)
	}
}

// The reasons of votes likewise: service mode in place of update, and the rest.
func TestVoteRefusals(t *testing.T) {
	w := world()
	rec := w.Newest().Record
	nonce := archive.CommitNonce(rec.InstanceAt(1), rec.Head())
	but := func(change func(st *trust.Statement)) trust.Attestation {
		st := w.CommitStatement(rec, 1, 2)
		change(&st)
		return w.Attest(2, nonce, st)
	}
	for _, c := range []struct {
		name string
		att  trust.Attestation
		why  string
	}{
		{"in service mode", but(func(st *trust.Statement) { st.Mode = trust.ModeService }), "made in service mode"},
		{"for another cluster", but(func(st *trust.Statement) { st.Slots.Archive[0] ^= 1 }), "of another archive"},
		{"on another epoch", but(func(st *trust.Statement) { st.Counter++ }), "not on top of the record before"},
		{"for another record", but(func(st *trust.Statement) { st.Slots.Committed.Record[0] ^= 1 }), "committed slot holds another record"},
		{"to prepare", w.Attest(2, archive.PrepareNonce(rec.InstanceAt(1), rec.Head()), w.CommitStatement(rec, 1, 2)), "another nonce"},
		{"of the attempt before", w.Commit(rec, 2, 2), "another nonce"},
	} {
		err := archive.CheckCommit(w.Roster, rec, 1, archive.Attested{Replica: 2, Attestation: c.att})
		if !errors.Is(err, archive.ErrIntegrity) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: got %v, want ...%s", c.name, err, c.why)
		}
	}
}
