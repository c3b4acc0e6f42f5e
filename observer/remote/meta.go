package remote

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// meta says whose queue a directory holds. The endpoint is there whole, with a
// password that it may hold, so that the queue can be delivered; only its
// owner can read the file.
type meta struct {
	Endpoint     string `json:"endpoint"`
	Encoder      string `json:"encoder"`
	ObserverUUID string `json:"observer_uuid"`
	ObserverName string `json:"observer_name"`
}

// maxMeta bounds what is read of a meta file.
const maxMeta = 64 << 10

func loadMeta(path string) (m meta, err error) {
	b, err := readBounded(filepath.Join(path, metaName), maxMeta)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%s: %w", metaName, err)
	}
	if m.Endpoint == "" || m.Encoder == "" {
		return m, fmt.Errorf("%s: no endpoint or encoder", metaName)
	}
	return m, nil
}

var errOtherForm = errors.New("queue directory holds spans in another form")

// store writes m unless it is there already.
func (m meta) store(path string) error {
	old, err := loadMeta(path)
	if err == nil && old.Encoder != m.Encoder {
		return fmt.Errorf("%s: %w: %q", path, errOtherForm, old.Encoder)
	}
	if err == nil && old == m {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return writeFile(path, metaName, append(b, '\n'), true)
}

var plainUUID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,63}$`)

// DirFor returns the directory below parent for the queue of one endpoint of an
// Observer: the same each time, also when the password in the URL has changed.
func DirFor(parent, observerUUID, endpoint string) string {
	name := strings.ToLower(observerUUID)
	if !plainUUID.MatchString(name) {
		name = short(observerUUID)
	}
	return filepath.Join(parent, name+"-"+short(withoutPassword(endpoint)))
}

func short(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

func withoutPassword(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || u.User == nil {
		return endpoint
	}
	u.User = url.User(u.User.Username())
	return u.String()
}

// Leftover is a queue on disk that no Exporter has.
type Leftover struct {
	Dir          string
	Endpoint     string // as it was named, with a password that it may hold
	Encoder      string // the name of the form
	ObserverUUID string
	ObserverName string
	Spans        int
	Err          error // of the meta file; with it only Dir and Spans are known
}

// Leftovers returns the queues below parent, as DirFor places them, that hold
// spans and that no Exporter has. Empty ones it removes. A parent that does not
// exist has none.
func Leftovers(parent string) ([]Leftover, error) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, ignoreAbsent(err)
	}
	var out []Leftover
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		l, err := leftover(filepath.Join(parent, e.Name()))
		switch {
		case errors.Is(err, ErrInUse):
		case err != nil:
			errs = append(errs, fmt.Errorf("queue %s: %w", e.Name(), err))
		case l.Spans > 0:
			out = append(out, l)
		}
	}
	return out, errors.Join(errs...)
}

func leftover(path string) (l Leftover, err error) {
	lock, err := lockDir(path, false)
	if err != nil {
		return l, ignoreAbsent(err)
	}
	defer func() { err = errors.Join(err, closeDir(lock, path, err == nil && l.Spans == 0)) }()
	frames, err := scan(path)
	if err != nil {
		return l, err
	}
	for _, f := range frames {
		l.Spans += f.spans
	}
	m, merr := loadMeta(path)
	l.Dir, l.Err = path, merr
	l.Endpoint, l.Encoder, l.ObserverUUID, l.ObserverName = m.Endpoint, m.Encoder, m.ObserverUUID, m.ObserverName
	return l, nil
}

// Remove deletes the queue with all spans in it.
func (l Leftover) Remove() error {
	lock, err := lockDir(l.Dir, false)
	if err != nil {
		return ignoreAbsent(err)
	}
	return errors.Join(os.RemoveAll(l.Dir), lock.Close())
}
