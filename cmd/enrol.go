package cmd

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

// withTPM runs f on the replica's TPM, while nothing serves it.
func (m member) withTPM(ctx context.Context, f func(tpm.Target) error) error {
	if m.MAS == masTPM {
		return f(m.target())
	}
	s, err := tpm.StartSwtpm(ctx, m.path(masDir), m.path(runDir))
	if err != nil {
		return withHint(err, "is swtpm installed? (apt install swtpm)")
	}
	return errors.Join(f(m.target()), s.Stop())
}

// endorsement returns the endorsement key of the replica's TPM and its digest;
// zeros for a software device, which has none.
func (m member) endorsement(ctx context.Context) (e tpm.Endorsement, digest archive.Digest, err error) {
	if m.MAS == masSoftware {
		return e, digest, nil
	}
	err = m.withTPM(ctx, func(t tpm.Target) error {
		e, err = tpm.ReadEndorsement(ctx, t)
		return err
	})
	if err != nil {
		return e, digest, err
	}
	sum, err := e.Digest()
	return e, archive.Digest(sum), err
}

// enrolment reads what newMember wrote.
func (m member) enrolment() (archive.Enrolment, error) { return readEnrolment(m.path(entryFile)) }

func readEnrolment(file string) (archive.Enrolment, error) {
	b, err := readFile(file, archive.MaxEnrolment)
	if err != nil {
		return archive.Enrolment{}, withStatus(exitUsage, fmt.Errorf("entry: %w", err))
	}
	e, err := archive.ParseEnrolment(b)
	if err != nil {
		return e, usagef("%s: not a replica's entry: %w", quote(file), err)
	}
	if err := checkEndorsement(e); err != nil {
		return e, usagef("%s: %w", quote(file), err)
	}
	return e, nil
}

func endorsementOf(e archive.Enrolment) tpm.Endorsement {
	return tpm.Endorsement{Public: e.EK, Certificate: e.Certificate}
}

// checkEndorsement holds the endorsement key of an enrolment against the digest
// that goes into the roster.
func checkEndorsement(e archive.Enrolment) error {
	if len(e.EK) == 0 {
		return nil
	}
	ek := endorsementOf(e)
	if err := ek.Check(); err != nil {
		return err
	}
	sum, err := ek.Digest()
	if err == nil && archive.Digest(sum) != e.Replica.EK {
		err = errors.New("the entry names another endorsement key than it shows")
	}
	return err
}

// challengeSecret is what the TPM of e has to give up. It follows from a key
// that only the roster's maker has, so that nothing else is to be kept between
// challenge and answer.
func challengeSecret(key []byte, e archive.Enrolment) (secret [tpm.SecretSize]byte) {
	id := e.ID()
	h := hmac.New(sha256.New, key)
	h.Write([]byte("bonafide/challenge-secret/v1\n"))
	h.Write(id[:])
	copy(secret[:], h.Sum(nil))
	return secret
}

func secretFile(name string) string {
	if name == "" {
		return filepath.Join(stateHome(), "enrol.key")
	}
	return name
}

// enrolKey reads the key of challengeSecret; make says that it may be made.
func enrolKey(name string, make bool) ([]byte, error) {
	b, err := readFile(name, maxSmallFile)
	if errors.Is(err, fs.ErrNotExist) && make {
		return newEnrolKey(name)
	}
	if err != nil {
		err = withStatus(exitUsage, fmt.Errorf("secret of the challenges: %w", err))
		return nil, withHint(err, "it lies where bonafide init challenge ran; --secret FILE names it")
	}
	if len(b) != sha256.Size {
		return nil, usagef("%s: %d bytes, want %d", quote(name), len(b), sha256.Size)
	}
	return b, nil
}

func newEnrolKey(name string) ([]byte, error) {
	key := make([]byte, sha256.Size)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	return key, writeFile(name, key, 0o600)
}

func (a *app) initChallengeCommand() *cobra.Command {
	var secret string
	c := &cobra.Command{
		Use:   "challenge ENTRY-FILE",
		Short: "Ask a replica's TPM to prove that the entry is its own",
		Long: `Print a challenge to the replica whose entry is given, made by whoever makes the
roster. It holds a secret that only the TPM with the entry's endorsement key can
open, and only if the entry's attestation key is in it. bonafide init answer
opens it on the replica, and bonafide init archive --answer checks the answer.

The secret follows from a key that is made in a file at the first challenge, and
that bonafide init archive needs again. A replica with a software device has
nothing to prove, and gets no challenge.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.initChallenge(args[0], secretFile(secret)) },
	}
	c.Flags().StringVar(&secret, "secret", "", "`file` of the key of all challenges (default $XDG_STATE_HOME/bonafide/enrol.key)")
	return c
}

func (a *app) initChallenge(file, secret string) error {
	e, err := readEnrolment(file)
	if err != nil {
		return err
	}
	if len(e.EK) == 0 {
		return usagef("%s: a software device has no endorsement key to ask: nothing protects it, and nothing can be proven of it", quote(file))
	}
	key, err := enrolKey(secret, true)
	if err != nil {
		return err
	}
	cred, err := endorsementOf(e).Seal(rand.Reader, e.Replica.MAS, challengeSecret(key, e))
	if err != nil {
		return err
	}
	a.say("on the machine of replica %d: bonafide init answer --dir DIR CHALLENGE-FILE", e.Replica.ID)
	_, err = a.out.Write(archive.NewChallenge(e, cred.Blob, cred.Secret).Bytes())
	return err
}

func (a *app) initAnswerCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "answer --dir DIR CHALLENGE-FILE",
		Short: "Answer a challenge with the replica's TPM",
		Long: `Open a challenge with the TPM of the replica in a directory, and print the
answer: an attestation over the secret that was in it and over the replica's
entry. Run it before the replica is served.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.initAnswer(c.Context(), dir, args[0]) },
	}
	c.Flags().StringVar(&dir, "dir", "", "`directory` of the replica")
	require(c, "dir")
	return c
}

func (a *app) initAnswer(ctx context.Context, dir, file string) error {
	m, err := openMember(dir)
	if err != nil {
		return err
	}
	lock, err := m.claim()
	if err != nil {
		return err
	}
	defer lock.Close()
	e, err := m.enrolment()
	if err != nil {
		return err
	}
	b, err := readFile(file, archive.MaxEnrolment)
	if err != nil {
		return withStatus(exitUsage, fmt.Errorf("challenge: %w", err))
	}
	c, err := archive.ParseChallenge(b)
	if err != nil {
		return usagef("%s: %w", quote(file), err)
	}
	if c.Enrolment != e.ID() || len(e.EK) == 0 {
		return usagef("%s: a challenge to another replica than %s", quote(file), quote(m.dir))
	}
	answer, err := m.answer(ctx, e, c)
	if err != nil {
		return err
	}
	_, err = a.out.Write(answer.Bytes())
	return err
}

func (m member) answer(ctx context.Context, e archive.Enrolment, c archive.Challenge) (answer archive.Activation, err error) {
	cred := tpm.Credential{Blob: c.Credential, Secret: c.Secret}
	err = m.withTPM(ctx, func(t tpm.Target) error {
		secret, err := cred.Open(ctx, t, endorsementOf(e))
		if err != nil {
			return err
		}
		mas, err := tpm.Open(ctx, t)
		if err != nil {
			return err
		}
		at, err := mas.Lookup(ctx, archive.ActivationNonce(c.Enrolment, secret))
		answer = archive.NewActivation(c.Enrolment, at)
		return errors.Join(err, mas.Close())
	})
	return answer, err
}

// proofs is what init archive judges the TPMs of its replicas by.
type proofs struct {
	answers, makers, keys []string
	secret                string
	unproven              bool
}

func (p *proofs) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&p.answers, "answer", nil, "`file` with a replica's answer to its challenge; repeat")
	f.StringArrayVar(&p.makers, "ek-ca", nil, "`file` with certificates, in PEM, of makers of TPMs; repeat")
	f.StringArrayVar(&p.keys, "ek", nil, "`SHA256` of a TPM's endorsement key that is known by other means; repeat")
	f.StringVar(&p.secret, "secret", "", "`file` of the key of the challenges (default $XDG_STATE_HOME/bonafide/enrol.key)")
	f.BoolVar(&p.unproven, "unproven", false, "take the word of replicas for their TPMs, unasked")
}

// check says whether each TPM among all has proven what its entry says, and is
// one that the maker of the roster trusts.
func (p proofs) check(all []archive.Enrolment, now time.Time) error {
	answers, err := p.read(all)
	if err != nil {
		return err
	}
	if p.unproven || !slices.ContainsFunc(all, hasTPM) {
		return nil
	}
	key, err := enrolKey(secretFile(p.secret), false)
	if err != nil {
		return err
	}
	j, err := p.judge(now)
	if err != nil {
		return err
	}
	j.mixed = mixed(all)
	for _, e := range all {
		if !hasTPM(e) {
			continue
		}
		if err := j.check(e, answers[e.ID()], challengeSecret(key, e)); err != nil {
			return fmt.Errorf("replica %d: %w", e.Replica.ID, err)
		}
	}
	return nil
}

func hasTPM(e archive.Enrolment) bool { return e.Replica.MAS.Profile != trust.ProfileSoftware }

// read returns the answers by the enrolment that they are about.
func (p proofs) read(all []archive.Enrolment) (map[archive.Digest]archive.Activation, error) {
	known := make(map[archive.Digest]bool)
	for _, e := range all {
		known[e.ID()] = true
	}
	answers := make(map[archive.Digest]archive.Activation)
	for _, file := range p.answers {
		b, err := readFile(file, archive.MaxEnrolment)
		if err != nil {
			return nil, withStatus(exitUsage, fmt.Errorf("answer: %w", err))
		}
		a, err := archive.ParseActivation(b)
		if err != nil {
			return nil, usagef("%s: %w", quote(file), err)
		}
		if !known[a.Enrolment] {
			return nil, usagef("%s: the answer to a challenge of none of these replicas", quote(file))
		}
		answers[a.Enrolment] = a
	}
	return answers, nil
}

func (p proofs) judge(now time.Time) (j judge, err error) {
	j.now = now
	for _, s := range p.keys {
		d, err := archive.ParseDigest(s)
		if err != nil {
			return j, usagef("--ek %s: %w", quote(s), err)
		}
		j.known = append(j.known, d)
	}
	for _, file := range p.makers {
		certs, err := readCertificates(file)
		if err != nil {
			return j, err
		}
		j.makers = append(j.makers, certs...)
	}
	return j, nil
}

func readCertificates(file string) (all []*x509.Certificate, err error) {
	b, err := readFile(file, maxSmallFile)
	if err != nil {
		return nil, withStatus(exitUsage, fmt.Errorf("--ek-ca: %w", err))
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, usagef("%s: %w", quote(file), err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, usagef("%s: no certificate in PEM", quote(file))
	}
	return all, nil
}

// A judge knows which endorsement keys to trust.
type judge struct {
	known  []archive.Digest
	makers []*x509.Certificate
	now    time.Time
	mixed  bool
}

// mixed reports whether there are endorsement keys of both kinds among all.
func mixed(all []archive.Enrolment) bool {
	var kinds [2]bool
	for _, e := range all {
		if hasTPM(e) && endorsementOf(e).RSA() {
			kinds[0] = true
		} else if hasTPM(e) {
			kinds[1] = true
		}
	}
	return kinds[0] && kinds[1]
}

func (j judge) check(e archive.Enrolment, a archive.Activation, secret [tpm.SecretSize]byte) error {
	if a.Attestation == nil {
		err := usagef("its TPM has not proven that the entry is its own")
		return withHint(err, "bonafide init challenge asks it, and --answer brings the answer; --unproven takes its word")
	}
	if err := a.Verify(e, secret); err != nil {
		return err
	}
	if slices.Contains(j.known, e.Replica.EK) {
		return nil
	}
	if err := j.certified(endorsementOf(e)); err != nil {
		return withHint(withStatus(exitIntegrity, err), "--ek-ca FILE names its maker; --ek %s trusts this TPM alone", e.Replica.EK)
	}
	return nil
}

// certified goes by the makers. Many TPMs have one certified key of each kind:
// where an archive has both kinds, one TPM could stand in two entries.
func (j judge) certified(e tpm.Endorsement) error {
	if j.mixed && e.RSA() {
		return fmt.Errorf("%w: RSA among others on P-256, and one TPM may have both", tpm.ErrEndorsement)
	}
	return e.CheckChain(j.makers, j.now)
}
