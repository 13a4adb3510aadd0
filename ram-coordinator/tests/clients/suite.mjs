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

/** Waits until no provider runs anything. */
export async function freed() {
    const began = Date.now();
    while (Date.now() < began + 30_000) {
        const path = `${BASE.slice(0, -"/v1".length)}/api/v1/providers`;
        const ids = (await (await fetch(path)).json()).providers.map((node) => node.id);
        // The list may be a second old; each provider by its id is shown as it is.
        const providers = await Promise.all(ids.map(async (id) => (await fetch(`${path}/${id}`)).json()));
        if (!providers.some((node) => node.load.running > 0)) return;
    }
    assert.fail("a provider still runs what nobody waits for");
}
