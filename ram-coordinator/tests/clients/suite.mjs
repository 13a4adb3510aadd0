// What the two suites in JavaScript share: where the server is, how cases are counted, and small words for checks.
//
// The environment is that of openai_python.py.

import assert from "node:assert/strict";

export const BASE = process.env.OPENAI_BASE_URL;
export const KEY = process.env.OPENAI_API_KEY;
export const MODEL = process.env.RAM_TEST_MODEL;
export const MODEL_ID = process.env.RAM_TEST_MODEL_ID;
export const SCRIPTED = process.env.RAM_TEST_SCRIPTED === "1";
export const TOOLS = process.env.RAM_TEST_TOOLS;

export const same = assert.deepEqual;
export const ok = assert.ok;

const cases = [];

/** Adds a case, if the server is one that can show it. */
export function it(name, act, needs = true) {
    if (needs) cases.push([name, act]);
}

/** Runs all cases, one after the other, and ends the process. */
export async function run(client) {
    let failed = 0;
    for (const [name, act] of cases) {
        try {
            await act();
            console.log(`ok ${name}`);
        } catch (error) {
            failed += 1;
            console.log(`FAILED ${name}`);
            console.error(error);
        }
    }
    console.log(`passed ${cases.length - failed} of ${cases.length} with ${client}, node ${process.version}`);
    process.exit(failed === 0 ? 0 : 1);
}

/** The error of this class that `act` must end with. */
export async function refused(kind, act) {
    try {
        await act();
    } catch (error) {
        ok(error instanceof kind, error);
        return error;
    }
    return assert.fail(`${kind.name} was expected`);
}

/** Milliseconds that the gateway may take until nothing runs for whoever left, as it promises. */
const FREED_WITHIN = 1000;

/**
 * Sees to it that nothing runs for whoever left, and that the next is served; tells how long it took.
 *
 * The gateway shows what its providers run, and has a promise to keep. The local server shows nothing: there another
 * answer, which `begin` waits for, begins when it has a slot, which is one of few.
 */
export async function freed(begin) {
    const began = performance.now();
    const took = () => performance.now() - began;
    if (SCRIPTED) {
        while (await running()) ok(took() < FREED_WITHIN, "a provider still runs what nobody waits for");
        ok(took() < FREED_WITHIN, `it took ${took()} ms`);
    } else {
        await begin();
    }
    console.log(`# free ${took().toFixed(0)} ms after the last client left`);
}

async function running() {
    // The list may be a second old; each provider by its id is shown as it is.
    const get = async (path) => (await fetch(`${BASE.slice(0, -"/v1".length)}/api/v1/providers${path}`)).json();
    const { providers } = await get("");
    const nodes = await Promise.all(providers.map(({ id }) => get(`/${id}`)));
    return nodes.some((node) => node.load.running > 0);
}
