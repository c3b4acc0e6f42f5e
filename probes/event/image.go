package event

import "bytes"

// imageDirs are what stands before the uuid of a storage repository in the paths of
// its images, as the storage manager names them.
var imageDirs = [...]string{"/dev/VG_XenStorage-", "/sr-mount/", "/dev/sm/backend/", "/dev/sm/phy/", "/blktap-control/nbd/"}

// imageKinds are what the name of an image may begin with before its uuid.
var imageKinds = [...]string{"VHD-", "LV-", "QCOW2-"}

// ParseImage returns the uuids of the storage repository and of the disk image that
// a path names, as parts of it; nil for what it does not say. No other uuid gets
// out: those of sessions are secrets.
func ParseImage(path []byte) (sr, vdi []byte) {
	if len(path) == 0 || path[0] != '/' {
		return nil, nil
	}
	for _, dir := range imageDirs {
		i := bytes.Index(path, []byte(dir))
		if i < 0 {
			continue
		}
		rest := path[i+len(dir):]
		if smb, ok := bytes.CutPrefix(rest, []byte("SMB/")); ok { // SMB/<server>/<sr>
			_, rest, _ = bytes.Cut(smb, []byte("/"))
		}
		if sr, rest = cutUUID(rest); sr == nil {
			continue
		}
		if len(rest) < 2 || rest[0] != '/' {
			return sr, nil
		}
		return sr, ImageName(rest[1:])
	}
	return nil, nil
}

// ImageName returns the uuid in the base name of an image, nil if it has none.
func ImageName(name []byte) []byte {
	for _, kind := range imageKinds {
		if rest, ok := bytes.CutPrefix(name, []byte(kind)); ok {
			name = rest
			break
		}
	}
	id, rest := cutUUID(name)
	if len(rest) > 0 && rest[0] != '.' && rest[0] != '_' {
		return nil
	}
	return id
}

// uuidLen is the length of a UUID as it is written.
const uuidLen = 36

// cutUUID splits b behind the UUID that it begins with, which no further digit
// follows.
func cutUUID(b []byte) (id, rest []byte) {
	if len(b) < uuidLen || len(b) > uuidLen && (isHexDigit(b[uuidLen]) || b[uuidLen] == '-') {
		return nil, b
	}
	if !IsUUID(b[:uuidLen]) {
		return nil, b
	}
	return b[:uuidLen:uuidLen], b[uuidLen:]
}

// IsUUID tells whether b is written as a UUID.
func IsUUID(b []byte) bool {
	if len(b) != uuidLen {
		return false
	}
	for i, c := range b {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !isHexDigit(c) {
				return false
			}
		}
	}
	return true
}

func isHexDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// ImageUUID is ImageName for texts.
func ImageUUID(name string) string {
	return string(ImageName([]byte(name)))
}
