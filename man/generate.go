// Package man is the home of the manual pages, one for each command, made from
// what the commands say of themselves.
package man

//go:generate go run ./write
