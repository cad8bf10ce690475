package cmd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

// A writer's key that is encrypted lies in a file as OpenSSH keeps its own, so that
// ssh-keygen -p gives it another passphrase.
const pemOpenSSH = "OPENSSH PRIVATE KEY"

// maxPassphrase bounds what is taken for a passphrase, in bytes.
const maxPassphrase = 4096

// loadWriterKey reads a writer's key, and asks for its passphrase if it is encrypted.
// One that others can read or write is refused: it may be known.
func (a *app) loadWriterKey(ctx context.Context, name string) (ed25519.PrivateKey, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, withStatus(exitUsage, err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, withHint(usagef("%s: others can read or write this key (mode %04o)", quote(name), fi.Mode().Perm()),
			"chmod 600 %s, and make another if somebody may have read it", quote(name))
	}
	b, err := readFile(name, maxSmallFile)
	if err != nil {
		return nil, withStatus(exitUsage, err)
	}
	if block, _ := pem.Decode(b); block == nil || block.Type != pemOpenSSH {
		return loadKey(name)
	}
	return a.openSSHKey(ctx, name, b)
}

func (a *app) openSSHKey(ctx context.Context, name string, b []byte) (ed25519.PrivateKey, error) {
	raw, err := ssh.ParseRawPrivateKey(b)
	if errors.As(err, new(*ssh.PassphraseMissingError)) {
		var pass []byte
		if pass, err = a.passphrase(ctx, "Passphrase of "+name+": "); err != nil {
			return nil, err
		}
		raw, err = ssh.ParseRawPrivateKeyWithPassphrase(b, pass)
	}
	if err != nil {
		return nil, usagef("%s: %w", quote(name), err)
	}
	key, ok := raw.(*ed25519.PrivateKey)
	if !ok {
		return nil, usagef("%s: not an Ed25519 key", quote(name))
	}
	return *key, nil
}

// newWriterKey makes a key in a file that must not be there yet, encrypted if asked to.
func (a *app) newWriterKey(ctx context.Context, name string, encrypted bool) (ed25519.PrivateKey, error) {
	if exists(name) {
		return nil, fmt.Errorf("%s: %w", quote(name), fs.ErrExist)
	}
	if !encrypted {
		return newKey(name, nil)
	}
	pass, err := a.newPassphrase(ctx, name)
	if err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "bonafide writer", pass)
	if err != nil {
		return nil, err
	}
	return key, writeFile(name, pem.EncodeToMemory(block), 0o600)
}

// newPassphrase asks twice, unless it comes from a file or command.
func (a *app) newPassphrase(ctx context.Context, name string) ([]byte, error) {
	pass, err := a.passphrase(ctx, "New passphrase of "+name+": ")
	if err != nil || !a.asksPassphrase() {
		return pass, err
	}
	again, err := a.passphrase(ctx, "Again: ")
	if err == nil && !bytes.Equal(pass, again) {
		err = usagef("the passphrases differ")
	}
	return pass, err
}

func (a *app) asksPassphrase() bool {
	return a.v.GetString("passphrase-file") == "" && a.v.GetString("passphrase-command") == ""
}

// passphrase takes a passphrase from the file or command that is configured, or asks
// for it on the terminal.
func (a *app) passphrase(ctx context.Context, prompt string) (pass []byte, err error) {
	file, command := a.v.GetString("passphrase-file"), a.v.GetString("passphrase-command")
	switch {
	case file != "":
		pass, err = readFile(file, maxPassphrase)
	case command != "":
		c := exec.CommandContext(ctx, "sh", "-c", command)
		c.Stdin, c.Stderr = os.Stdin, a.stderr()
		pass, err = c.Output()
	default:
		pass, err = a.askPassphrase(ctx, prompt)
	}
	if err != nil {
		return nil, withStatus(exitUsage, fmt.Errorf("passphrase: %w", err))
	}
	pass = []byte(strings.TrimRight(string(pass), "\r\n"))
	if len(pass) == 0 || len(pass) > maxPassphrase || bytes.ContainsAny(pass, "\n\x00") {
		return nil, usagef("passphrase: empty, too long or more than one line")
	}
	return pass, nil
}

// askPassphrase reads a line from the terminal of this process, without showing it.
func (a *app) askPassphrase(ctx context.Context, prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, withHint(errors.New("there is no terminal to ask for it"),
			"BONAFIDE_PASSPHRASE_FILE or BONAFIDE_PASSPHRASE_COMMAND gives it")
	}
	defer tty.Close()
	was, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil, err
	}
	fmt.Fprint(tty, plain(prompt))
	type answer struct {
		pass []byte
		err  error
	}
	said := make(chan answer, 1)
	go func() {
		pass, err := term.ReadPassword(int(tty.Fd()))
		said <- answer{pass, err}
	}()
	select {
	case s := <-said:
		fmt.Fprintln(tty)
		return s.pass, s.err
	case <-ctx.Done(): // the reader may never return
		fmt.Fprintln(tty)
		return nil, errors.Join(context.Cause(ctx), term.Restore(int(tty.Fd()), was))
	}
}
