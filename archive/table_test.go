package archive_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/trust"
)

var goodNames = []string{
	"a", "a/b", "notes/a.txt", "...", "a/...", ".hidden", "a b", "ö", "o\u0308", "日本/語", "a\\b", "-", "~",
	".bonafide", ".bonafidex/a", "a/.bonafide/b", strings.Repeat("x", archive.MaxName), "\u200e", "\U0001f600", "con", "a:b", "*?",
}

var badNames = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "a/.", "a/..", "./a", "../a", "a/../b", "a\x00", "a\n", "a\tb", "\x7f", "\u0085", "\u009f",
	"a\u202eb", "\u202a", "\u2066x", "x\u2069", "\xff", "a\xc3", "\xed\xa0\x80", ".bonafide/", ".bonafide/x", strings.Repeat("x", archive.MaxName+1), strings.Repeat("ö", 513),
}

func TestNames(t *testing.T) {
	for _, n := range goodNames {
		if err := archive.Name(n).Check(); err != nil {
			t.Errorf("%q: %v", n, err)
		}
	}
	for _, n := range badNames {
		if err := archive.Name(n).Check(); !errors.Is(err, archive.ErrName) {
			t.Errorf("%q: %v, want ErrName", n, err)
		}
	}
}

func TestNormalizeName(t *testing.T) {
	for in, want := range map[string]string{"o\u0308": "ö", "ö": "ö", "a": "a", "\u212b": "å"[:0] + "\u00c5"} {
		got, changed := archive.NormalizeName(in)
		if string(got) != want || changed != (in != want) {
			t.Errorf("%q: %q, %v; want %q", in, got, changed, want)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for _, p := range []string{"", "a", "a/", "/", "..", ".bonafide/"} {
		if err := archive.CheckPrefix(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{"\x00", "\xff", "a\n", strings.Repeat("x", archive.MaxName+1)} {
		if err := archive.CheckPrefix(p); !errors.Is(err, archive.ErrName) {
			t.Errorf("%q: %v, want ErrName", p, err)
		}
	}
}

var tuesday = time.Date(2026, 11, 24, 10, 17, 30, 500, time.UTC)

var schedules = []struct {
	s    archive.Schedule
	want string // next after tuesday; empty: refused
}{
	{"0 */6 * * *", "2026-11-24T12:00:00Z"},
	{"* * * * *", "2026-11-24T10:18:00Z"},
	{"17 10 * * *", "2026-11-25T10:17:00Z"},
	{"0 3 * * 1", "2026-11-30T03:00:00Z"},
	{"0 0 29 2 *", "2028-02-29T00:00:00Z"},
	{"*/15 9-17 1 * *", "2026-12-01T09:00:00Z"},
	{"@every 1m", "2026-11-24T10:18:00Z"},
	{"@every 10s", "2026-11-24T10:17:40Z"},
	{"@every 7s", "2026-11-24T10:17:36Z"},
	{"@every 24h", "2026-11-25T00:00:00Z"},
	{"@every 1h30m", "2026-11-24T10:30:00Z"},
	{"", ""}, {"@every", ""}, {"@every ", ""}, {"@every 0s", ""}, {"@every -1m", ""}, {"@every 1500ms", ""}, {"@every 1", ""},
	{"@every 1m ", ""}, {" @every 1m", ""}, {"* * * *", ""}, {"60 * * * *", ""}, {"* * * * * *", ""}, {"x * * * *", ""}, {"@daily", ""},
	{"0 0 30 2 *", ""}, {"0 0 31 4,6 *", ""}, // never come
}

func TestSchedules(t *testing.T) {
	for _, tt := range schedules {
		err := tt.s.Check()
		if tt.want == "" {
			if !errors.Is(err, archive.ErrRoster) {
				t.Errorf("%q: %v, want ErrRoster", tt.s, err)
			}
			continue
		}
		next := tt.s.Next(tuesday)
		if got := next.Format(time.RFC3339Nano); err != nil || got != tt.want {
			t.Errorf("%q: next %s (%v), want %s", tt.s, got, err, tt.want)
		}
		if again := tt.s.Next(next.In(time.FixedZone("far", 5*3600))); !again.After(next) {
			t.Errorf("%q: after %s comes %s", tt.s, next, again)
		}
	}
}

// All replicas start together, whenever each of them looked at the clock.
func TestEveryIsAnchored(t *testing.T) {
	for d := range 7 {
		if got := archive.Schedule("@every 7s").Next(tuesday.Add(time.Duration(d-4) * time.Second)); got.Unix()%7 != 0 || got.Nanosecond() != 0 {
			t.Errorf("phase at %s", got)
		}
	}
}

func TestJSONHasOneForm(t *testing.T) {
	good := `{"format":"a<b","replica":1,"record":"","certificate":"AQI=","attestation":"","proof":null}`
	var a archive.Answer
	if err := archive.DecodeJSON([]byte(good), &a); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"space":           strings.Replace(good, ":1", ": 1", 1),
		"newline":         good + "\n",
		"twice":           good + good,
		"another key":     strings.Replace(good, `"proof"`, `"extra":1,"proof"`, 1),
		"key twice":       strings.Replace(good, `"replica":1`, `"replica":2,"replica":1`, 1),
		"case folded":     strings.Replace(good, `"replica"`, `"Replica"`, 1),
		"kelvin sign":     strings.Replace(good, `"replica"`, `"replıca"`, 1),
		"order":           `{"replica":1,"format":"a<b","record":"","certificate":"AQI=","attestation":"","proof":null}`,
		"missing":         strings.Replace(good, `,"proof":null`, "", 1),
		"escaped":         strings.Replace(good, "a<b", `a\u003cb`, 1),
		"number form":     strings.Replace(good, ":1,", ":1.0,", 1),
		"exponent":        strings.Replace(good, ":1,", ":1e0,", 1),
		"loose base64":    strings.Replace(good, "AQI=", "AQJ=", 1),
		"no padding":      strings.Replace(good, "AQI=", "AQI", 1),
		"base64 newline":  strings.Replace(good, "AQI=", `AQ\nI=`, 1),
		"byte order mark": "\ufeff" + good,
		"bad UTF-8":       strings.Replace(good, "a<b", "a\xff", 1),
		"null":            "null",
		"too large":       strings.Replace(good, ":1,", ":4294967296,", 1),
	} {
		var a archive.Answer
		if err := archive.DecodeJSON([]byte(bad), &a); !errors.Is(err, archive.ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

func TestRosterRefusals(t *testing.T) {
	for name, change := range map[string]func(r *archive.Roster){
		"format":         func(r *archive.Roster) { r.Format = "bonafide/roster/v2" },
		"hash":           func(r *archive.Roster) { r.Hash = "sha-1" },
		"f":              func(r *archive.Roster) { r.F = 2 },
		"no f":           func(r *archive.Roster) { r.F = 0; r.Replicas = r.Replicas[:1] },
		"three":          func(r *archive.Roster) { r.Replicas = r.Replicas[:3] },
		"name":           func(r *archive.Roster) { r.Name = "a\nb" },
		"created":        func(r *archive.Roster) { r.Created = r.Created.Add(1) },
		"zone":           func(r *archive.Roster) { r.Created = r.Created.In(time.FixedZone("", 3600)) },
		"schedule":       func(r *archive.Roster) { r.Schedule = "often" },
		"no phase":       func(r *archive.Roster) { r.Limits.Phase = 0 },
		"long join":      func(r *archive.Roster) { r.Limits.Join = r.Limits.Phase },
		"order":          func(r *archive.Roster) { r.Replicas[0], r.Replicas[1] = r.Replicas[1], r.Replicas[0] },
		"id 0":           func(r *archive.Roster) { r.Replicas[0].ID = 0 },
		"id twice":       func(r *archive.Roster) { r.Replicas[1].ID = 1 },
		"address":        func(r *archive.Roster) { r.Replicas[0].Address = "nowhere" },
		"port":           func(r *archive.Roster) { r.Replicas[0].Address = "a:0" },
		"shared address": func(r *archive.Roster) { r.Replicas[0].Address = r.Replicas[1].Agreement },
		"shared device":  func(r *archive.Roster) { r.Replicas[0].MAS = r.Replicas[1].MAS },
		"shared key":     func(r *archive.Roster) { r.Replicas[0].Key = r.Replicas[1].Key },
		"shared TLS key": func(r *archive.Roster) { r.Replicas[0].TLS = r.Replicas[1].TLS },
		"short key":      func(r *archive.Roster) { r.Replicas[0].Key = r.Replicas[0].Key[:31] },
		"profile":        func(r *archive.Roster) { r.Replicas[0].MAS.Profile = "best" },
		"writer twice":   func(r *archive.Roster) { r.Writers = append(r.Writers, r.Writers[0]) },
		"empty prefix":   func(r *archive.Roster) { r.Writers[0].Prefixes = []string{""} },
		"threshold":      func(r *archive.Roster) { r.Threshold = 1 },
		"no threshold":   func(r *archive.Roster) { r.Operators = []archive.PublicKey{r.Writers[0].Key} },
	} {
		r := world().Roster
		change(r)
		if _, err := archive.ParseRoster(r.Bytes()); !errors.Is(err, archive.ErrRoster) {
			t.Errorf("%s: %v, want ErrRoster", name, err)
		}
	}
}

func TestRecordRefusals(t *testing.T) {
	good := string(world().Newest().Record.Bytes())
	for name, bad := range map[string]string{
		"sign":           strings.Replace(good, "epoch 3", "epoch +3", 1),
		"leading zero":   strings.Replace(good, "epoch 3", "epoch 03", 1),
		"two spaces":     strings.Replace(good, "epoch 3", "epoch  3", 1),
		"carriage":       strings.Replace(good, "epoch 3\n", "epoch 3\r\n", 1),
		"no newline":     strings.TrimSuffix(good, "\n"),
		"more":           good + "more 1\n",
		"upper case hex": strings.Replace(good, "archive ", "archive A", 1),
		"zone":           strings.Replace(good, "18:00:00Z", "19:00:00+01:00", 1),
		"fraction":       strings.Replace(good, "18:00:00Z", "18:00:00.5Z", 1),
		"joined twice":   strings.Replace(good, "joined 1 2 3", "joined 1 2 2", 1),
		"joined order":   strings.Replace(good, "joined 1 2 3", "joined 2 1 3", 1),
		"trailing":       strings.Replace(good, "joined 1 2 3", "joined 1 2 3 ", 1),
		"counts":         strings.Replace(good, "1:4.0", "1:4", 1),
		"counts more":    strings.Replace(good, "1:4.0", "1:4.0x", 1),
		"counts sign":    strings.Replace(good, "1:4.0", "1:+4.0", 1),
		"counts range":   strings.Replace(good, "1:4.0", "1:4294967296.0", 1),
		"long":           good + strings.Repeat(" ", archive.MaxRecord),
	} {
		if bad == good {
			t.Fatalf("%s: changes nothing in\n%s", name, good)
		}
		if _, err := archive.ParseRecord([]byte(bad)); !errors.Is(err, archive.ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

// Each rule of a certificate, broken alone, with signatures that are right.
func TestCertificateRefusals(t *testing.T) {
	w := world()
	e := w.Newest()
	rec := e.Record
	vote := func(change func(st *trust.Statement)) archive.Certificate {
		c := w.Certify(rec, 1, 1, 2, 3)
		st := w.CommitStatement(rec, 1, 2)
		change(&st)
		c.Votes[1].Attestation = w.Attest(2, archive.CommitNonce(rec.InstanceAt(1), rec.Head()), st)
		return c
	}
	if err := vote(func(*trust.Statement) {}).Verify(w.Roster, rec); err != nil {
		t.Fatal(err)
	}
	if err := w.Certify(rec, 5, 2, 3, 4).Verify(w.Roster, rec); err != nil {
		t.Errorf("of a later tick: %v", err)
	}
	swapped := w.Certify(rec, 1, 1, 2, 3)
	swapped.Votes[0].Replica, swapped.Votes[1].Replica = 2, 1
	mixed := w.Certify(rec, 1, 1, 2, 3)
	mixed.Votes[0] = w.Certify(rec, 2, 1).Votes[0]
	for name, c := range map[string]archive.Certificate{
		"two votes":       w.Certify(rec, 1, 1, 2),
		"four votes":      w.Certify(rec, 1, 1, 2, 3, 4),
		"one twice":       w.Certify(rec, 1, 1, 2, 2),
		"order":           w.Certify(rec, 1, 2, 1, 3),
		"names swapped":   swapped,
		"two ticks":       mixed,
		"earlier tick":    w.Certify(rec, 0, 1, 2, 3),
		"of another":      w.Epochs[2].Certificate,
		"service mode":    vote(func(st *trust.Statement) { st.Mode = trust.ModeService }),
		"another head":    vote(func(st *trust.Statement) { st.Slots.Head[0] ^= 1 }),
		"another epoch":   vote(func(st *trust.Statement) { st.Slots.Epoch++ }),
		"another archive": vote(func(st *trust.Statement) { st.Slots.Archive[0] ^= 1 }),
		"counter behind":  vote(func(st *trust.Statement) { st.Counter-- }),
		"counter ahead":   vote(func(st *trust.Statement) { st.Counter++ }),
		"committed epoch": vote(func(st *trust.Statement) { st.Slots.Committed.Epoch++ }),
		"committed tick":  vote(func(st *trust.Statement) { st.Slots.Committed.Tick++ }),
		"committed other": vote(func(st *trust.Statement) { st.Slots.Committed.Record[0] ^= 1 }),
		"prepare nonce": func() archive.Certificate {
			c := w.Certify(rec, 1, 1, 2, 3)
			c.Votes[0].Attestation = w.Attest(1, archive.PrepareNonce(rec.InstanceAt(1), rec.Head()), w.CommitStatement(rec, 1, 1))
			return c
		}(),
	} {
		if err := c.Verify(w.Roster, rec); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s: %v, want ErrIntegrity", name, err)
		}
	}
}

func TestReceiptRefusals(t *testing.T) {
	w := world()
	for name, change := range map[string]func(rc *archive.Receipt){
		"one attestation": func(rc *archive.Receipt) { rc.Attestations = rc.Attestations[:1] },
		"one twice":       func(rc *archive.Receipt) { rc.Attestations[1] = rc.Attestations[0] },
		"order":           func(rc *archive.Receipt) { a := rc.Attestations; a[0], a[1] = a[1], a[0] },
		"stranger":        func(rc *archive.Receipt) { rc.Attestations[1].Replica = 9 },
		"update mode": func(rc *archive.Receipt) {
			rc.Attestations[0].Attestation = w.Newest().Certificate.Votes[0].Attestation
		},
		"another nonce": func(rc *archive.Receipt) { rc.Nonce[0] ^= 1 },
		"another name":  func(rc *archive.Receipt) { rc.Name = "docs/a.txt" },
		"absent name":   func(rc *archive.Receipt) { rc.Name = "docs/c"; rc.Proof = w.Newest().Tree.Prove([]byte("docs/c")) },
		"bad name":      func(rc *archive.Receipt) { rc.Name = "../x" },
		"rosters":       func(rc *archive.Receipt) { rc.Rosters = []string{"x"} },
		"older record": func(rc *archive.Receipt) {
			e := w.Epochs[2]
			rc.Record, rc.Certificate = string(e.Record.Bytes()), e.Certificate.Bytes()
		},
		"no record": func(rc *archive.Receipt) { rc.Record = "" },
		"genesis":   func(rc *archive.Receipt) { rc.Record = string(w.Epochs[0].Record.Bytes()) },
		"archive":   func(rc *archive.Receipt) { rc.Archive[0] ^= 1 },
	} {
		rc := receiptOf(w)
		change(&rc)
		if _, _, err := rc.Verify(w.Roster); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s: %v, want ErrIntegrity", name, err)
		}
	}
	other := forge.New(forge.Options{Seed: "other"})
	if _, _, err := receiptOf(w).Verify(other.Roster); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("under another roster: %v", err)
	}
}

func TestSubmissionRefusals(t *testing.T) {
	w := world()
	for name, change := range map[string]func(s *archive.Submission){
		"no names":  func(s *archive.Submission) { s.Bindings = nil },
		"order":     func(s *archive.Submission) { b := s.Bindings; b[0], b[1] = b[1], b[0] },
		"twice":     func(s *archive.Submission) { s.Bindings[1] = s.Bindings[0] },
		"bad name":  func(s *archive.Submission) { s.Bindings[0].Name = "a//b" },
		"too many":  func(s *archive.Submission) { s.Bindings = manyBindings(archive.MaxBindings + 1) },
		"long name": func(s *archive.Submission) { s.Bindings[1].Name = archive.Name(strings.Repeat("x", archive.MaxName+1)) },
	} {
		s := submissionOf(w)
		change(&s)
		s.Sign(w.Writer)
		if _, err := archive.ParseSubmission(s.Bytes()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	s := submissionOf(w)
	s.Bindings = manyBindings(archive.MaxBindings)
	s.Sign(w.Writer)
	if _, err := archive.ParseSubmission(s.Bytes()); err != nil {
		t.Errorf("the most names: %v", err)
	}
}

func manyBindings(n int) (bs []archive.Binding) {
	for i := range n {
		bs = append(bs, forge.Bind(archive.Name(fmt.Sprintf("n%06d", i)), "x"))
	}
	return bs
}

func TestWriters(t *testing.T) {
	w := world()
	s := submissionOf(w)
	wr, err := s.Verify(w.Roster)
	check(t, "writer", err)
	s.Bindings = []archive.Binding{forge.Bind("secret", "x")}
	if err := wr.Permitted(s); !errors.Is(err, archive.ErrNotWriter) {
		t.Errorf("outside its prefixes: %v", err)
	}
	s.Sign(w.Stranger)
	if _, err := s.Verify(w.Roster); !errors.Is(err, archive.ErrNotWriter) {
		t.Errorf("stranger: %v", err)
	}
	for age, ok := range map[time.Duration]bool{0: true, time.Hour: true, 30 * 24 * time.Hour: true, 30*24*time.Hour + time.Second: false, -time.Hour: true, -2 * time.Hour: false} {
		if err := s.Fresh(s.Created.Add(age), 30*24*time.Hour); (err == nil) != ok {
			t.Errorf("at age %s: %v", age, err)
		}
	}
	b := s.Bytes()
	if a, k, err := archive.SubmissionWriter(b[:archive.SubmissionPrefix]); err != nil || a != s.Archive || k != s.Writer {
		t.Errorf("prefix: %v", err)
	}
}

// The README's promise of decades: a duration or a digest has one text form.
func TestTextForms(t *testing.T) {
	var d archive.Digest
	for _, bad := range []string{"", "00", strings.Repeat("A", 64), strings.Repeat("0", 63) + "g", strings.Repeat("0", 66)} {
		if err := json.Unmarshal([]byte(`"`+bad+`"`), &d); !errors.Is(err, archive.ErrFormat) {
			t.Errorf("digest %q: %v", bad, err)
		}
	}
	var k archive.PublicKey
	for _, bad := range []string{"", "ed25519:", strings.Repeat("0", 64), "ed25519:" + strings.Repeat("0", 62), "ed25519:" + strings.Repeat("F", 64)} {
		if err := k.UnmarshalText([]byte(bad)); !errors.Is(err, archive.ErrFormat) {
			t.Errorf("key %q: %v", bad, err)
		}
	}
}
