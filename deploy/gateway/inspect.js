// Inspect what nginx itself cannot read: JSON, the messages of gRPC, and which endpoints there are.
//
// Triton 2.51 recurses once for each level of JSON until its stack overflows, divides by zero when it
// is asked to classify an output of strings, and allocates 16 bytes for each byte of JSON. Only
// structure, names and lengths are examined; images are skipped. For njs 0.7.9 (Debian 12) and newer.

import fs from 'fs';

// Eight images with all parameters take 7 levels and 2 kB beside the strings.
const MAX_LEVELS = 16;
// Bytes outside of strings; each takes a step of the interpreter, about 0.3 microseconds.
const MAX_STEPS = 65536;
const MAX_FIELDS = 4096;
const FORBIDDEN = 'classification';
const LONGEST_NAME = 6 * FORBIDDEN.length; // each letter may be written as \u0063
const LONGEST_ENDPOINT = 64; // a name has at most 40 letters, and `_ensemble` follows
const LIST = '/list'; // in the folder `endpoints`, written by endpoints.py
const MAX_TAG = 5; // bytes of a field's number or length: protobuf refuses more
const MAX_NUMBER = 10;
const WINDOW = 65536;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

// The headers that decide in nginx.conf. If one were sent twice or in another spelling, Triton could
// read another value than nginx did.
const EXAMINED = ['x-api-key', 'content-type', 'content-encoding', 'grpc-encoding',
    'inference-header-content-length'];

// A key of $sentence in nginx.conf.template, without the status before it. The limits stand there too.
function Refusal(fault) {
    this.fault = fault;
}

/** Return 1 if a header of EXAMINED occurs twice or with an underscore, or is not a number of bytes. */
function ambiguous(r) {
    const seen = {};
    for (let i = 0; i < r.rawHeadersIn.length; i++) {
        const given = r.rawHeadersIn[i][0].toLowerCase();
        const name = given.replace(/_/g, '-');
        if (EXAMINED.indexOf(name) >= 0) {
            if (seen[name] || name !== given) {
                return fail(r);
            }
            seen[name] = true;
        }
    }
    return r.variables.json_length === 'unknown' ? fail(r) : '0';
}

function fail(r) {
    r.variables.fault = 'header';
    return '1';
}

/**
 * Return the names of the endpoints. The file is read for each request, so that a network which is
 * added or removed needs no reload of nginx: a reload closes connections, and with them may lose
 * requests over gRPC.
 */
function served(r) {
    const text = fs.readFileSync(r.variables.document_root + LIST, 'utf8');
    return text.split('\n').filter((line) => line !== '');
}

/** Return whether a caller may use this endpoint: `*` in the file of keys means all. */
function permitted(r, name) {
    const limits = r.variables.limits;
    return limits === '*' || limits.split(/[\s,]+/).indexOf(name) >= 0;
}

/** Return the endpoint that the path names, or '' if there is none of that name. */
function endpoint(r) {
    const name = r.variables.path_endpoint;
    return name && served(r).indexOf(name) >= 0 ? name : '';
}

/** Return 1 if the caller has no right to the endpoint that the path names. */
function forbidden(r) {
    const name = r.variables.endpoint;
    if (!name || permitted(r, name)) {
        return '0';
    }
    r.variables.fault = 'endpoint';
    return '1';
}

/**
 * Return the endpoints that the REST service may ask for this caller. It reads the model's name, in the
 * path, the query, the form or the JSON, and holds it against this list.
 */
function granted(r) {
    return r.variables.caller ? served(r).filter((name) => permitted(r, name)).join(',') : '';
}

/** Return 1 if the REST service may ask no endpoint for this caller. */
function excluded(r) {
    if (granted(r)) {
        return '0';
    }
    r.variables.fault = 'endpoint';
    return '1';
}

/** Return the query without the caller's key, which the REST service has no need of. */
function query(r) {
    const kept = (r.variables.args || '').split('&').filter((one) => {
        return one !== '' && one.split('=')[0].toLowerCase() !== 'api_key';
    });
    return kept.length > 0 ? '?' + kept.join('&') : '';
}

/** Return the endpoints that the caller may use, for a sentence. A stranger learns of one alone. */
function allowed(r) {
    const names = served(r).filter((name) => permitted(r, name));
    return names.length > 1 && !r.variables.caller ? '' : names.join(', ');
}

/** Handle POST .../infer and .../generate, unless the body is one raw image. */
function json(r) {
    const length = r.variables.json_length;
    inspectAndForward(r, '/inspected', (body) => {
        return inspectJson(body, length === 'all' ? body.size : Math.min(Number(length), body.size));
    });
}

/** Handle ModelInfer, and ModelReady and ModelMetadata, whose only field of interest is the name. */
function grpc(r) {
    const detection = r.variables.target.endsWith('/ModelInfer');
    inspectAndForward(r, '/inference.GRPCInferenceService/inspected', (body) => {
        const found = inspectMessage(body, detection);
        if (served(r).indexOf(found.name) < 0) {
            throw new Refusal('model');
        }
        if (!permitted(r, found.name)) {
            throw new Refusal('endpoint');
        }
        return found.images;
    });
}

/** Pass the request on after `inspect` has read the body and returned its number of images; answer
 * if it throws a Refusal. */
function inspectAndForward(r, next, inspect) {
    const file = r.variables.request_body_file; // empty without a body
    const body = new Body(file);
    try {
        r.internalRedirect(inspect(body) > 1 ? next + '/batches' : next);
    } catch (e) {
        if (!(e instanceof Refusal)) {
            throw e;
        }
        r.variables.fault = e.fault;
        r.return({ compressed: 415, endpoint: 403 }[e.fault] || 400);
    } finally {
        body.close();
    }
}

/** A file, of which one window is held in memory. */
function Body(file) {
    this.fd = file ? fs.openSync(file, 'r') : null;
    this.size = file ? fs.fstatSync(this.fd).size : 0;
    this.window = Buffer.alloc(WINDOW);
    this.start = 0; // of the window, in the file
    this.end = 0;
}

Body.prototype.close = function () {
    if (this.fd !== null) {
        fs.closeSync(this.fd);
    }
};

/** Move the window so that it begins at `position`. */
Body.prototype.load = function (position) {
    this.start = position;
    const length = fs.readSync(this.fd, this.window, 0, WINDOW, position);
    if (length === 0) {
        throw new Refusal('malformed');
    }
    this.end = position + length;
};

Body.prototype.byte = function (position) {
    if (position >= this.size) {
        throw new Refusal('malformed');
    }
    if (position < this.start) { // backwards, one byte at a time, after a quote
        this.load(Math.max(0, position - WINDOW / 2));
    } else if (position >= this.end) {
        this.load(position);
    }
    return this.window[position - this.start];
};

Body.prototype.text = function (from, to) {
    let bytes = '';
    for (let i = from; i < to; i++) {
        bytes += String.fromCharCode(this.byte(i));
    }
    return bytes;
};

/** Return the position of the next byte of that value before `limit`, otherwise `limit`. */
Body.prototype.find = function (value, position, limit) {
    while (position < limit) {
        this.byte(position);
        const found = this.window.indexOf(value, position - this.start);
        if (found >= 0 && this.start + found < Math.min(this.end, limit)) {
            return this.start + found;
        }
        position = this.end;
    }
    return limit;
};

/**
 * Examine the lexical structure alone. Triton refuses what is not JSON; it reads in the same order and
 * stops at the first error. Return the number of images, the first dimension of the shape.
 */
function inspectJson(body, size) {
    let level = 0;
    let steps = 0;
    let name = '';
    let shape = '';
    for (let at = 0; at < size; at++) {
        if (++steps > MAX_STEPS) {
            throw new Refusal('too_many_parts');
        }
        const byte = body.byte(at);
        switch (byte) {
        case 0x7b: // {
        case 0x5b: // [
            if (++level > MAX_LEVELS) {
                throw new Refusal('nested');
            }
            break;
        case 0x7d:
        case 0x5d:
            level--;
            break;
        case 0x3a: // :
            if (name === FORBIDDEN) {
                throw new Refusal(FORBIDDEN);
            }
            break;
        case 0x2c: // ,
            name = '';
            break;
        case QUOTE: {
            const begin = at + 1;
            // A quote after an odd number of backslashes belongs to the string.
            for (;;) {
                at = body.find(QUOTE, at + 1, size);
                let slashes = 0;
                while (at - slashes > begin && body.byte(at - slashes - 1) === BACKSLASH) {
                    slashes++;
                    if (++steps > MAX_STEPS) {
                        throw new Refusal('too_many_parts');
                    }
                }
                if (at === size || slashes % 2 === 0) {
                    break;
                }
                if (++steps > MAX_STEPS) {
                    throw new Refusal('too_many_parts');
                }
            }
            name = at - begin > LONGEST_NAME ? '' : unescaped(body.text(begin, at));
            steps += Math.min(at - begin, LONGEST_NAME);
            break;
        }
        default:
            if (name === 'shape' && byte >= 0x30 && byte <= 0x39) {
                shape += String.fromCharCode(byte);
            }
        }
    }
    return Number(shape);
}

function unescaped(text) {
    if (text.indexOf('\\') < 0) {
        return text;
    }
    try {
        return JSON.parse('"' + text + '"');
    } catch (e) {
        return '';
    }
}

// https://protobuf.dev/programming-guides/encoding/; field numbers: grpc_service.proto of KServe.

/**
 * Return the name of the model, and for a detection the number of images, after an examination of
 * all fields. Of a field that is repeated protobuf takes the last one, also if that is empty.
 */
function inspectMessage(body, detection) {
    // A flag of compression and a length precede the message, and nothing follows it.
    if (body.size < 5) {
        throw new Refusal('malformed');
    }
    if (body.byte(0) !== 0) {
        throw new Refusal('compressed');
    }
    let length = 0;
    for (let i = 1; i < 5; i++) {
        length = length * 256 + body.byte(i);
    }
    if (length !== body.size - 5) {
        throw new Refusal('malformed');
    }
    let name = { from: 0, to: 0 };
    let images = 0;
    const count = { fields: 0 };
    eachField(body, 5, body.size, count, (number, from, to, value) => {
        if (number === 1 && value === null) {
            name = { from: from, to: to };
        } else if (number === 5 && detection) {
            images = Math.max(images, batchSize(body, from, to, count));
        } else if (number === 6 && detection) {
            inspectOutput(body, from, to, count);
        }
    });
    if (name.to - name.from > LONGEST_ENDPOINT) {
        throw new Refusal('model');
    }
    return { name: body.text(name.from, name.to), images: images };
}

/** Return the first dimension of an InferInputTensor's shape, field 3. */
function batchSize(body, from, to, count) {
    let images = 0;
    eachField(body, from, to, count, (number, begin, end, value) => {
        if (number === 3 && images === 0) {
            images = begin < end ? varint(body, begin, end, MAX_NUMBER).value : Number(value);
        }
    });
    return images;
}

/** Examine an InferRequestedOutputTensor: its parameters, field 2, are pairs with a name, field 1. */
function inspectOutput(body, from, to, count) {
    eachField(body, from, to, count, (number, pair, pairEnd) => {
        if (number !== 2) {
            return;
        }
        eachField(body, pair, pairEnd, count, (part, begin, end) => {
            if (part === 1 && end - begin === FORBIDDEN.length
                && body.text(begin, end) === FORBIDDEN) {
                throw new Refusal(FORBIDDEN);
            }
        });
    });
}

/** Read a number of at most `longest` bytes. It need not be in its shortest form. */
function varint(body, at, to, longest) {
    let value = 0;
    for (let i = 0, factor = 1; i < longest && at < to; i++, factor *= 128) {
        const next = body.byte(at++);
        value += (next & 127) * factor;
        if (next < 128) {
            return { value: value, end: at };
        }
    }
    throw new Refusal('malformed');
}

/**
 * Call `see(field, from, to, value)` for each field of numbers or of bytes between two positions.
 * `value` is null for bytes.
 */
function eachField(body, from, to, count, see) {
    let at = from;

    function number(longest) {
        const read = varint(body, at, to, longest);
        at = read.end;
        return read.value;
    }

    while (at < to) {
        if (++count.fields > MAX_FIELDS) {
            throw new Refusal('too_many_parts');
        }
        // Cut to 32 bits, as protobuf does.
        const tag = number(MAX_TAG) % 4294967296;
        const field = Math.floor(tag / 8);
        switch (tag % 8) {
        case 0:
            see(field, at, at, number(MAX_NUMBER));
            break;
        case 1:
            at += 8;
            break;
        case 2: {
            const size = number(MAX_TAG);
            if (size > to - at) {
                throw new Refusal('malformed');
            }
            see(field, at, at + size, null);
            at += size;
            break;
        }
        case 5:
            at += 4;
            break;
        default: // groups, which do not occur in Triton's messages
            throw new Refusal('malformed');
        }
    }
    if (at !== to) {
        throw new Refusal('malformed');
    }
}

export default { ambiguous, endpoint, forbidden, granted, excluded, query, allowed, json, grpc };
