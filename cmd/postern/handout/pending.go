package handout

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// Pending are files that are written beside their places, until they are put there
// all together.
type Pending []pendingFile

type pendingFile struct{ Path, beside string }

// add writes a file beside path. With over it will take the place of one that is there.
func (p *Pending) add(path string, text []byte, over bool) error {
	was, err := os.Lstat(path)
	switch {
	case err == nil && !was.Mode().IsRegular():
		return fmt.Errorf("%s already exists and is not a regular file", path)
	case err == nil && !over:
		return fmt.Errorf("%s already exists: --force overwrites it", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	beside := path + ".new" + strconv.Itoa(os.Getpid())
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		var cause *fs.PathError
		if errors.As(err, &cause) { // it names the file beside
			err = cause.Err
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	*p = append(*p, pendingFile{path, beside})
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// Put puts the files into their places.
func (p Pending) Put() error {
	for _, file := range p {
		if err := os.Rename(file.beside, file.Path); err != nil {
			return err
		}
	}
	return nil
}

// Drop removes what was not put.
func (p Pending) Drop() {
	for _, file := range p {
		_ = os.Remove(file.beside)
	}
}
